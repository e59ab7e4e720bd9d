"""Frames, boxes, points and run lengths, against golden values, scipy, pycocotools and sums done by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from scipy.ndimage import distance_transform_edt

from pixelthink.geometry import (
    CoordinateFrame,
    Target,
    box_area,
    box_iou,
    clip_box,
    clip_target,
    decode_rle,
    encode_rle,
    mask_box,
    representative_points,
    target_from_mask,
)
from tests.support import golden_rows

MASK_POINTS = golden_rows("mask_points.jsonl.gz")
sides = st.integers(1, 4000)
frames = st.builds(
    CoordinateFrame, st.tuples(sides, sides), st.tuples(sides, sides), st.sampled_from(["pixels", "per_mille"])
)
fractions = st.tuples(*[st.floats(0, 1)] * 4)


@pytest.mark.parametrize("row", MASK_POINTS, ids=lambda row: str(row["id"]))
def test_points_and_box_equal_the_released_functions(row: dict[str, Any]) -> None:
    mask, expected = decode_rle(row["mask"]), row["expected"]
    assert representative_points(mask).tolist() == [expected["point_1"], expected["point_2"]]
    assert list(mask_box(mask)) == expected["box_xyxy_inclusive"]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 10_000))
def test_first_point_is_scipys_maximum(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.8
    mask[0, 0], mask[-1, -1] = False, True
    y, x = np.unravel_index(distance_transform_edt(mask).argmax(), mask.shape)
    points = representative_points(mask)
    assert points[0].tolist() == [x, y]
    assert mask[points[:, 1], points[:, 0]].all()


def test_points_of_a_cross_fall_back_to_its_centre() -> None:
    mask = np.zeros((5, 5), dtype=bool)
    mask[2, 1:4] = mask[1:4, 2] = True  # four of five pixels are equally far, so none is farther than the median
    assert representative_points(mask).tolist() == [[2, 2], [2, 2]]


def test_points_of_a_mask_without_background() -> None:
    points = representative_points(np.ones((5, 7), dtype=bool))
    assert points.dtype == np.int64
    assert points[0].tolist() == [2, 2]  # the first pixel three steps from the border


@pytest.mark.parametrize("function", [representative_points, mask_box, target_from_mask])
def test_an_empty_mask_has_no_target(function: Any) -> None:
    with pytest.raises(ValueError, match="empty"):
        function(np.zeros((4, 4), dtype=bool))
    with pytest.raises(ValueError, match="shape"):
        function(np.ones((4, 4, 3), dtype=bool))


def test_target_from_mask_by_hand() -> None:
    mask = np.zeros((10, 20), dtype=bool)
    mask[2:5, 4:13] = True  # 3 × 9: the inner pixels of the middle row tie; the median distance from (5, 3) is √10
    assert target_from_mask(mask) == Target((4.0, 2.0, 12.0, 4.0), ((5.0, 3.0), (9.0, 3.0)))


def test_the_840_pixel_legacy() -> None:
    frame = CoordinateFrame((420, 1680), (840, 840))
    assert frame.box_to_answer((10.0, 20.0, 30.0, 40.0)) == (20.0, 10.0, 60.0, 20.0)
    assert frame.point_to_original((60.0, 20.0)) == (30.0, 40.0)
    assert frame.answer_size == (840, 840)


def test_per_mille_does_not_depend_on_the_model_size() -> None:
    first, second = (CoordinateFrame((500, 250), size, "per_mille") for size in ((28, 56), (840, 840)))
    assert first.point_to_answer((250.0, 25.0)) == second.point_to_answer((250.0, 25.0)) == (500.0, 100.0)


@given(frames, fractions)
def test_round_trip(frame: CoordinateFrame, at: tuple[float, ...]) -> None:
    width, height = (n - 1 for n in frame.original_size)
    box = at[0] * width, at[1] * height, at[2] * width, at[3] * height
    target = Target(box, ((box[0], box[1]), (box[2], box[3])))
    back = frame.target_to_original(frame.target_to_answer(target))
    assert back.box_xyxy == pytest.approx(box, rel=1e-12, abs=1e-12)
    assert back.points_xy[1] == back.box_xyxy[2:]


@given(frames, fractions)
def test_an_answer_in_whole_numbers_loses_at_most_half_a_unit(frame: CoordinateFrame, at: tuple[float, ...]) -> None:
    point = at[0] * (frame.original_size[0] - 1), at[1] * (frame.original_size[1] - 1)
    x, y = frame.point_to_answer(point)
    back = frame.point_to_answer(frame.point_to_original((round(x), round(y))))
    for told, asked, unit, side in zip(back, (x, y), frame.answer_size, frame.model_size, strict=True):
        assert abs(told - asked) <= 0.5 + 1e-9
        if frame.convention == "pixels" or side <= 1000:
            assert abs(told - asked) * side / unit <= 0.5 + 1e-9  # in model pixels


@given(frames, st.tuples(*[st.floats(-1e4, 1e4)] * 6))
def test_order_and_containment_survive(frame: CoordinateFrame, values: tuple[float, ...]) -> None:
    (x1, x, x2), (y1, y, y2) = sorted(values[:3]), sorted(values[3:])
    for to_box, to_point in (
        (frame.box_to_answer, frame.point_to_answer),
        (frame.box_to_original, frame.point_to_original),
    ):
        box, point = to_box((x1, y1, x2, y2)), to_point((x, y))
        assert box[0] <= point[0] <= box[2]
        assert box[1] <= point[1] <= box[3]


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5,), (5.5, 3)])
def test_frames_refuse_sizes(size: Any) -> None:
    with pytest.raises(ValueError, match="model_size must be two positive integers"):
        CoordinateFrame((5, 5), size)


def test_frames_refuse_conventions() -> None:
    with pytest.raises(ValueError, match="convention"):
        CoordinateFrame((5, 5), (5, 5), "percent")  # type: ignore[arg-type]


def test_clipping() -> None:
    assert clip_box((-3.0, 2.5, float("inf"), 99.0), width=10, height=5) == (0.0, 2.5, 9.0, 4.0)
    target = clip_target(Target((-1.0, -1.0, 3.0, 3.0), ((-5.0, 1.0), (1.0, 50.0))), width=3, height=3)
    assert target == Target((0.0, 0.0, 2.0, 2.0), ((0.0, 1.0), (1.0, 2.0)))
    with pytest.raises(ValueError, match="numbers"):
        clip_box((0.0, float("nan"), 1.0, 1.0), width=10, height=5)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 9, 9), (0, 0, 9, 9), 1.0),
        ((0, 0, 9, 9), (5, 0, 14, 9), 50 / 150),
        ((0, 0, 9, 9), (9, 9, 18, 18), 1 / 199),  # they share one pixel
        ((0, 0, 9, 9), (10, 0, 19, 9), 0.0),
        ((3, 3, 3, 3), (3, 3, 3, 3), 1.0),
        ((9, 9, 0, 0), (0, 0, 9, 9), 0.0),  # inside out
    ],
)
def test_box_iou_by_hand(a: Any, b: Any, expected: float) -> None:
    assert box_iou(a, b) == expected
    assert box_iou(b, a) == expected


def test_box_area_counts_both_corners() -> None:
    assert box_area((2, 3, 4, 3)) == 3
    assert box_area((4, 3, 2, 3)) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 10_000))
def test_rle_equals_pycocotools(height: int, width: int, density: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    rle = encode_rle(mask)
    theirs = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert rle == {"size": [height, width], "counts": theirs["counts"].decode()}
    flat = mask.ravel(order="F")
    edges = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), flat.size]
    runs = [0] * bool(flat[0]) + np.diff(edges).tolist()  # the first run is of background
    for form in (rle, theirs, {"size": [height, width], "counts": runs}):
        assert (decode_rle(form) == mask).all()


def test_rle_counts_list_by_hand() -> None:
    assert decode_rle({"size": [2, 3], "counts": [1, 2, 3]}).tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ("PX", "object"),
        ({"size": [2, 2]}, "counts"),
        ({"size": [2], "counts": [4]}, "size"),
        ({"size": [2, 0], "counts": []}, "size"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, "limit"),
        ({"size": [2, 2], "counts": [3]}, "3 pixels, the size 2×2 needs 4"),
        ({"size": [2, 2], "counts": [5, -1]}, "0 or more"),
        ({"size": [2, 2], "counts": 7}, "string or a list"),
        ({"size": [2, 2], "counts": "ü"}, "characters"),
        ({"size": [2, 2], "counts": "4 "}, "characters"),
        ({"size": [2, 2], "counts": "O5"}, "negative"),
        ({"size": [2, 2], "counts": "P"}, "middle of a run"),
        ({"size": [2, 2], "counts": "o" * 100}, "characters"),
    ],
)
def test_damaged_rle_is_one_clear_line(rle: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        decode_rle(rle)
    assert "\n" not in str(caught.value)
