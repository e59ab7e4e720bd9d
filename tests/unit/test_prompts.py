"""Prompt texts, to the letter where they are released, and answers as they ask for them."""

from __future__ import annotations

import re

import pytest

from pixelthink.data.prompts import BriefPrompt, NoThinkingPrompt, PixelThinkPrompt, PromptStyle, VisionReasonerPrompt
from pixelthink.parsing import parse_completion
from tests.photos import PHOTOS

RELEASED = (
    "Please find 'the dog on the left' with bbox and points.Compare the difference between objects and find the most "
    "closely matched one.Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
    "Output the one bbox and points of two largest inscribed circles inside the interested object in JSON format.i.e., "
    "<think> thinking process here </think><answer>{'bbox': [10,100,200,210], 'points_1': [30,110], 'points_2': "
    "[35,180]}</answer>"
)
FACTS = PHOTOS.parent / "FACTS.md"
STYLES: list[PromptStyle] = [PixelThinkPrompt(), BriefPrompt(), NoThinkingPrompt(), VisionReasonerPrompt()]


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


def test_variants_differ_from_the_released_text_where_they_should() -> None:
    assert BriefPrompt().text("x").startswith(PixelThinkPrompt().text("x"))
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
