"""Answered objects in original pixels: what is cut off, left out, and reported as odd."""

from __future__ import annotations

import pytest
from PIL import Image

from pixelthink.answering.acceptance import checked_objects
from pixelthink.geometry import CoordinateFrame
from pixelthink.parsing import parse_completion
from pixelthink.types import Prompt, Sample

IMAGE = Image.new("RGB", (100, 50))
PROMPT = Prompt(Sample("a", IMAGE, "q"), (), IMAGE, CoordinateFrame((100, 50), (200, 100)), ())


def found(box: list[int], first: list[int], second: list[int]):
    answer = f'{{"bbox": {box}, "points_1": {first}, "points_2": {second}}}'
    return checked_objects(PROMPT, parse_completion(f"<think>x</think><answer>{answer}</answer>"))


@pytest.mark.parametrize(
    ("box", "points", "expected", "flaws"),
    [
        ([20, 20, 60, 80], ([30, 30], [40, 40]), (10, 10, 30, 40), ()),
        ([20, 20, 60, 80], ([30, 30], [70, 40]), (10, 10, 30, 40), ("points_off_box",)),
        ([20, 20, 60, 80], ([19, 30], [40, 40]), (10, 10, 30, 40), ("points_off_box",)),
        ([20, 20, 60, 80], ([20, 20], [60, 80]), (10, 10, 30, 40), ()),
        ([100, 20, 300, 80], ([110, 30], [120, 40]), (50, 10, 99, 40), ("box_beyond_image",)),
    ],
)
def test_flaws_are_named_and_boxes_cut_at_the_edge(box, points, expected, flaws) -> None:
    answered = found(box, *points)
    assert answered.failure is None
    assert answered.objects[0].box_xyxy == expected
    assert answered.flaws == flaws


def test_a_box_outside_the_image_is_a_failure() -> None:
    assert found([400, 20, 500, 80], [410, 30], [420, 40]).failure == "box_outside_image"
