"""The three accuracy terms of the released reward, each 1 or 0 at a threshold, equal to it on every text.

PixelThink, `verl/utils/reward_score/seg_pixelthink.py`. They read the first `{[^}]+}` of the response as the released
terms do, which is not how an answer is read that has to be segmented: a box counts where the points beside it are
missing, `true` counts as 1, points may be numeric strings and lose their fractions. Whatever makes the released code
raise gives 0. Coordinates are answer coordinates, thresholds are in their units (pixels of the model's image for
Qwen2.5-VL).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pixelthink.errors import UserError
from pixelthink.geometry import Box, Point, Target, point_in_box
from pixelthink.parsing import single_answer_json
from pixelthink.rewards.base import RewardTerm
from pixelthink.types import ScoringCase


def released_box_iou(box: Sequence[float], target: Box) -> float:
    """IoU with the +1 pixel convention; an intersection that is one pixel wide or high counts as none.

    Args:
        box: Predicted `(x1, y1, x2, y2)`.
        target: The true one.

    Raises:
        ArithmeticError: a union of 0, or numbers too large for a float.
    """
    x1, y1 = max(box[0], target[0]), max(box[1], target[1])
    x2, y2 = min(box[2], target[2]), min(box[3], target[3])
    shared = (x2 - x1 + 1) * (y2 - y1 + 1) if x1 < x2 and y1 < y2 else 0
    area, true_area = ((b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, target))
    return float(shared) / (area + true_area - shared)


def box_l1(first: Sequence[float], second: Sequence[float]) -> float:
    """Mean absolute difference of the four coordinates, in the boxes' units."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / 4


def paired_point_distance(first: tuple[Point, Point], second: tuple[Point, Point]) -> float:
    """Mean Euclidean distance of two pairs of points under the better of both pairings."""

    def distance(a: Point, b: Point) -> float:
        return math.sqrt((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2)

    straight = distance(first[0], second[0]) + distance(first[1], second[1])
    crossed = distance(first[0], second[1]) + distance(first[1], second[0])
    return min(straight, crossed) / 2


class BoxIoU(RewardTerm):
    """1 where the predicted box overlaps the target's enough, else 0 (PixelThink, released reward).

    Args:
        threshold: IoU that has to be exceeded, 0 to 1.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = _checked("BoxIoU", threshold)

    def __call__(self, case: ScoringCase) -> float:
        """The term's value for one response."""
        target, box = single_target(case), _written_box(case)
        try:
            return float(box is not None and released_box_iou(box, target.box_xyxy) > self.threshold)
        except ArithmeticError:
            return 0.0


class BoxL1(RewardTerm):
    """1 where the predicted box's corners lie near the target's, else 0 (PixelThink, released reward).

    Args:
        threshold: Mean of the four absolute differences that must not be reached, in answer units (pixels).
    """

    def __init__(self, threshold: float = 10.0) -> None:
        self.threshold = _checked("BoxL1", threshold)

    def __call__(self, case: ScoringCase) -> float:
        """The term's value for one response."""
        target, box = single_target(case), _written_box(case)
        try:
            return float(box is not None and box_l1(box, target.box_xyxy) < self.threshold)
        except ArithmeticError:
            return 0.0


class PointL1(RewardTerm):
    """1 where both points lie in the *predicted* box and near the target's points (PixelThink, released reward).

    Args:
        threshold: Mean distance under the better pairing that must not be reached, in answer units (pixels).
    """

    def __init__(self, threshold: float = 100.0) -> None:
        self.threshold = _checked("PointL1", threshold)

    def __call__(self, case: ScoringCase) -> float:
        """The term's value for one response."""
        target, box = single_target(case), _written_box(case)
        try:
            data = single_answer_json(case.text) or {}
            first, second = (_truncated(data[key]) for key in ("points_1", "points_2"))
            if box is None or not (point_in_box(first, box) and point_in_box(second, box)):
                return 0.0
            return float(paired_point_distance((first, second), target.points_xy) < self.threshold)
        except (LookupError, TypeError, ValueError, ArithmeticError):
            return 0.0


def single_target(case: ScoringCase) -> Target:
    """The one target of a single-object case.

    Raises:
        UserError: the case has none or several; names the sample.
    """
    if len(case.targets) != 1:
        raise UserError(f"sample {case.id}: a single-object reward needs exactly 1 target, found {len(case.targets)}")
    return case.targets[0]


def _written_box(case: ScoringCase) -> Box | None:
    """The four numbers of `bbox`, as the response has them; None where they are not four numbers."""
    box = (single_answer_json(case.text) or {}).get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        return None
    return box[0], box[1], box[2], box[3]


def _truncated(point: Any) -> Point:
    """The first two entries of a list or text, each by `int()`."""
    return int(point[0]), int(point[1])


def _checked(owner: str, threshold: float) -> float:
    if not math.isfinite(threshold) or threshold < 0:
        raise UserError(f"{owner}: threshold must be a finite number, not negative, got {threshold}")
    return threshold
