"""Prompt texts, to the letter where they are released, and answers as they ask for them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pixelthink.data.prompts import (
    NoThinkingPrompt,
    PixelThinkPrompt,
    PromptStyle,
    ShortPrompt,
    TokenTargets,
    VisionReasonerPrompt,
)
from pixelthink.errors import UserError
from pixelthink.parsing import parse_completion
from pixelthink.types import TokenTarget
from tests.photos import PHOTOS

RELEASED = (
    "Please find 'the dog on the left' with bbox and points.Compare the difference between objects and find the most "
    "closely matched one.Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
    "Output the one bbox and points of two largest inscribed circles inside the interested object in JSON format.i.e., "
    "<think> thinking process here </think><answer>{'bbox': [10,100,200,210], 'points_1': [30,110], 'points_2': "
    "[35,180]}</answer>"
)
FACTS = PHOTOS.parent / "FACTS.md"
STYLES: list[PromptStyle] = [PixelThinkPrompt(), NoThinkingPrompt(), VisionReasonerPrompt()]


def test_the_released_prompt() -> None:
    assert PixelThinkPrompt().text("The dog on the LEFT.") == RELEASED
    system, user = PixelThinkPrompt().messages("x")
    assert system == {"role": "system", "content": "You are a helpful assistant."}
    assert [part["type"] for part in user["content"]] == ["image", "text"]


@pytest.mark.skipif(not FACTS.is_file(), reason=f"no {FACTS}; set PIXELTHINK_SHARED")
def test_the_released_prompt_is_the_one_on_record() -> None:
    (recorded,) = re.findall(r"^    (Please find .*)$", FACTS.read_text(encoding="utf-8"), re.MULTILINE)
    assert PixelThinkPrompt().text("{question}") == recorded


def test_the_visionreasoner_prompt() -> None:
    text = VisionReasonerPrompt().text("Dogs.")
    assert text == (
        'Please find "dogs" with bboxs and points.Compare the difference between object(s) and find the most closely '
        "matched object(s).Output the thinking process in <think> </think> and final answer in <answer> </answer> "
        "tags.Output the bbox(es) and point(s) inside the interested object(s) in JSON format.i.e., <think> thinking "
        'process here </think><answer>[{"bbox_2d": [10,100,200,210], "point_2d": [30,110]}, '
        '{"bbox_2d": [225,296,706,786], "point_2d": [302,410]}]</answer>'
    )
    assert "output <answer>[]</answer>" in VisionReasonerPrompt(no_target=True).text("dogs")
    assert VisionReasonerPrompt(newline=True).text("Dogs.") == f"\n{text}"
    assert VisionReasonerPrompt(strip='."?!').text('"Dogs?"') == text
    assert VisionReasonerPrompt().text("Dogs?") == text.replace("dogs", "dogs?")


def test_no_system_message() -> None:
    (user,) = PixelThinkPrompt(system=None).messages("x")
    assert user["role"] == "user"


def test_a_length_is_asked_for_after_everything_else() -> None:
    """L1's words, `scripts/data/deepscaler_dataset.py` of cmu-l3/l1, lines 76 to 79."""
    style = PixelThinkPrompt(suffix=" Please.", target=TokenTargets(tokens=60))
    asked = style.token_target("a")
    text = style.messages("x", asked)[1]["content"][1]["text"]
    assert asked == TokenTarget(60)
    assert text == f"{PixelThinkPrompt().text('x')} Please. Think for 60 tokens."
    style = ShortPrompt(target=TokenTargets(rule="max", tokens=60))
    assert (
        style.messages("x", style.token_target("a"))[0]["content"][1]["text"] == "find x. Think for maximum 60 tokens."
    )
    assert ShortPrompt().token_target("a") is None


def test_lengths_are_drawn_once_for_each_sample() -> None:
    """A function of seed and id: nothing of the order, the epoch or the process enters."""
    drawn = {name: TokenTargets(rule="either").of(str(name)) for name in range(4000)}
    assert drawn == {name: TokenTargets(rule="either").of(str(name)) for name in reversed(range(4000))}
    assert drawn[0] != TokenTargets(rule="either", seed=1).of("0")
    tokens = [target.tokens for target in drawn.values()]
    assert 100 <= min(tokens) < 110
    assert 3990 < max(tokens) <= 4000
    assert sum(tokens) / 4000 == pytest.approx(2050, abs=60)  # standard error of a uniform mean: 18
    assert sum(target.at_most for target in drawn.values()) / 4000 == pytest.approx(0.5, abs=0.03)
    assert {TokenTargets(rule="max").of(str(n)).at_most for n in range(50)} == {True}
    assert {TokenTargets(rule="exact").of(str(n)).at_most for n in range(50)} == {False}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rule": "least"}, "unknown 'least'; known: exact, max, either"), ({"tokens": 0}, "at least 1"),
     ({"fewest": 9, "most": 8}, "fewest <= most")],
)  # fmt: skip
def test_a_length_that_cannot_be_asked_for(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TokenTargets(**options)


def test_variants_differ_from_the_released_text_where_they_should() -> None:
    assert "think>" not in NoThinkingPrompt().text("x")


@pytest.mark.parametrize("style", STYLES, ids=lambda style: type(style).__name__)
def test_the_example_in_a_prompt_parses_in_its_own_style(style: PromptStyle) -> None:
    example = re.search(r"i\.e\., (.*</answer>)", style.text("x"))
    assert example is not None
    answer = parse_completion(example.group(1).replace("'", '"'), style.answer_style)
    assert answer.failure is None
    assert answer.box_xyxy == (10, 100, 200, 210)
    assert answer.think_ok == (not isinstance(style, NoThinkingPrompt))


def test_no_target_is_an_answer() -> None:
    answer = parse_completion("<think>none</think><answer>[]</answer>", "visionreasoner")
    assert (answer.failure, answer.objects, answer.answer_ok) == (None, (), True)
