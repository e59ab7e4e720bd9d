"""The parser: what it reads, what it calls a failure, and that no text upsets it."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelthink.parsing import Answer, Failure, parse_completion

GOOD = (
    '<think>a dog </think>\n<answer>{"bbox": [10, 20, 30.5, 40], "points_1": [15, 25], "points_2": [20, 30]}</answer>'
)
SIZE = 100_000


def single(bbox: object = (1, 2, 3, 4), points_1: object = (1, 2), points_2: object = (2, 3)) -> str:
    return json.dumps({"bbox": bbox, "points_1": points_1, "points_2": points_2})


def test_reads_a_good_answer() -> None:
    assert parse_completion(GOOD) == Answer(
        reasoning="a dog",
        box_xyxy=(10.0, 20.0, 30.5, 40.0),
        points_xy=((15.0, 25.0), (20.0, 30.0)),
        think_ok=True,
        answer_ok=True,
        failure=None,
    )


@pytest.mark.parametrize(
    ("text", "failure", "answer_ok"),
    [
        ("", "no_json", False),
        ("{}", "no_json", False),
        ("{'bbox': [1, 2, 3, 4]}", "invalid_json", False),
        ('{"bbox": {"a": 1}, "points_1": [1, 2], "points_2": [2, 3]}', "invalid_json", False),
        (single("1234"), "not_a_list", False),
        ('{"bbox": [1, 2, 3, 4], "points_1": [1, 2]}', "missing_key", False),
        (single([1, 2, 3]), "wrong_length", False),
        (single(points_1=[1, 2, 3]), "wrong_length", False),
        (single(["1", "2", "3", "4"]), "not_a_number", True),
        (single([True, False, True, True]), "not_a_number", True),
        (single([None] * 4), "not_a_number", True),
        (single([float("nan"), 2, 3, 4]), "not_finite", True),
        ('{"bbox": [1, 2, 1e400, 4], "points_1": [1, 2], "points_2": [2, 3]}', "not_finite", True),
        (single([1, 2, 10**400, 4]), "not_finite", True),
        (single([5, 2, 3, 4]), "empty_box", True),
    ],
)
def test_failures_have_a_reason(text: str, failure: Failure, answer_ok: bool) -> None:
    answer = parse_completion(text)
    assert (answer.failure, answer.answer_ok) == (failure, answer_ok)


def test_a_box_counts_even_where_the_points_are_missing() -> None:
    answer = parse_completion('{"bbox": [1, 2, 3, 4], "points_1": [1, 2]}')
    assert answer.box_xyxy == (1.0, 2.0, 3.0, 4.0)
    assert answer.points_xy is None


def test_points_beyond_the_second_number_are_read_but_fail() -> None:
    answer = parse_completion(single(points_1=[1, 2, 3]))
    assert answer.points_xy == ((1.0, 2.0), (2.0, 3.0))
    assert not answer.answer_ok


def test_the_first_braces_of_the_whole_response_count() -> None:
    text = f"{{}} <think>{single([9, 9, 9, 9])}</think><answer>{single()}</answer>"
    assert parse_completion(text).box_xyxy == (9.0, 9.0, 9.0, 9.0)


@pytest.mark.parametrize(
    ("text", "think_ok"),
    [
        ("<think></think><answer></answer>", True),
        ("<think>a\nb</think> \n\t<answer>x</answer>", True),
        ("<think></think><answer></think><answer></answer>", True),
        ("<think></think>x<answer></answer>", False),
        (" <think></think><answer></answer>", False),
        ("<think></think><answer></answer>\n", False),
        ("<think></think><answer>", False),
        ("<think><answer></answer>", False),
        ("<think></think><answer", False),
    ],
)
def test_think_format(text: str, think_ok: bool) -> None:
    assert parse_completion(text).think_ok is think_ok


def test_several_objects() -> None:
    text = (
        '<think>x</think><answer> [{"bbox_2d": [1, 2, 3, 4], "point_2d": [2, 3]},'
        ' {"point_2d": [2, 3]}, 7, {"bbox_2d": [1, 2, 3, NaN], "point_2d": [1]}] </answer>'
    )
    answer = parse_completion(text, "visionreasoner")
    assert [o.failure for o in answer.objects] == [None, "missing_key", "missing_key", "not_finite"]
    assert [(o.box_listed, o.point_listed) for o in answer.objects] == [
        (True, True),
        (False, True),
        (False, False),
        (True, False),
    ]
    assert (answer.box_xyxy, answer.points_xy) == ((1.0, 2.0, 3.0, 4.0), ((2.0, 3.0),))
    assert (answer.failure, answer.answer_ok) == ("missing_key", False)


@pytest.mark.parametrize(
    ("inside", "failure"),
    [("<answer>[]</answer>", None), ("<answer>{}</answer>", "not_a_list"), ("<answer>none</answer>", "invalid_json"),
     ("<answer>[]", "no_answer")],
)  # fmt: skip
def test_no_objects(inside: str, failure: Failure | None) -> None:
    answer = parse_completion(inside, "visionreasoner")
    assert (answer.objects, answer.failure, answer.answer_ok) == ((), failure, failure is None)


def test_unknown_style() -> None:
    with pytest.raises(ValueError, match="unknown answer style 'other'; known: single, visionreasoner"):
        parse_completion("", "other")


@pytest.mark.parametrize("style", ["single", "visionreasoner"])
@pytest.mark.parametrize(
    "text",
    [
        "{" * SIZE,
        "{}" * (SIZE // 2),
        "<think>" * (SIZE // 7),
        "<think>" + "</think><answer>" * (SIZE // 16) + "</answer>x",
        "<think>" + "</think> " * (SIZE // 9) + "</answer>",
        "<think></think>" + " " * SIZE + "</answer>",
        "<answer>" * (SIZE // 8),
        "1" * SIZE,
        '{"bbox": ' + "[" * SIZE + "}",
        '{"bbox": [' + "1" * SIZE + "]}",
        '{"bbox": [0.' + "1" * SIZE + ", 1e400, NaN, -Infinity]}",
        "<answer>" + "[" * SIZE + "</answer>",
        "<answer>[" + "{}," * (SIZE // 3) + "{}]</answer>",
        "\ud800" * SIZE,
    ],
    ids=range(14),
)
def test_hostile_text_is_parsed_in_linear_time(text: str, style: str) -> None:
    start = time.process_time()
    parse_completion(text, style)
    assert time.process_time() - start < 2.0  # quadratic searches take minutes


PIECES = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "{", "}", "[", "]", '"bbox"', '"points_1"', '"points_2"', ":", ",",
     " ", "\n", "1", "1e400", "NaN", "-Infinity", "null", "true", '"bbox_2d"', '"point_2d"', "\\", '"']
)  # fmt: skip


@pytest.mark.parametrize("style", ["single", "visionreasoner"])
@given(text=st.text() | st.lists(PIECES, max_size=40).map("".join))
def test_never_raises(text: str, style: str) -> None:
    answer = parse_completion(text, style)
    if answer.failure is None and style == "single":
        assert answer.answer_ok
        assert answer.box_xyxy is not None
        assert answer.points_xy is not None


NESTED = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=5)
)


@pytest.mark.parametrize("style", ["single", "visionreasoner"])
@given(bbox=NESTED, first=NESTED, second=NESTED)
def test_never_raises_on_any_json(bbox: object, first: object, second: object, style: str) -> None:
    parse_completion(single(bbox, first, second), style)
    items = json.dumps([{"bbox_2d": bbox, "point_2d": first}, second])
    parse_completion(f"<answer>{items}</answer>", style)
