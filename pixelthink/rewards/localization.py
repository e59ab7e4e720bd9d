"""The three accuracy terms: box overlap, box distance and point distance, each 1 or 0 at a threshold.

They look at what the parser could read: a box counts even where the points beside it are missing, as in the released
code. Coordinates are answer coordinates, thresholds are in their units (pixels of the model's image for Qwen2.5-VL).
"""

from __future__ import annotations

import math

from pixelthink.errors import UserError
from pixelthink.geometry import Box, Point, Target, box_iou, point_in_box
from pixelthink.rewards.base import RewardTerm
from pixelthink.types import ScoringCase


def box_l1(first: Box, second: Box) -> float:
    """Mean absolute difference of the four coordinates, in the boxes' units."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / 4


def paired_point_distance(first: tuple[Point, Point], second: tuple[Point, Point]) -> float:
    """Mean Euclidean distance of two pairs of points under the better of both pairings."""
    straight = math.dist(first[0], second[0]) + math.dist(first[1], second[1])
    crossed = math.dist(first[0], second[1]) + math.dist(first[1], second[0])
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
        target, box = single_target(case), case.answer.box_xyxy
        return float(box is not None and box_iou(box, target.box_xyxy) > self.threshold)


class BoxL1(RewardTerm):
    """1 where the predicted box's corners lie near the target's, else 0 (PixelThink, released reward).

    Args:
        threshold: Mean of the four absolute differences that must not be reached, in answer units (pixels).
    """

    def __init__(self, threshold: float = 10.0) -> None:
        self.threshold = _checked("BoxL1", threshold)

    def __call__(self, case: ScoringCase) -> float:
        """The term's value for one response."""
        target, box = single_target(case), case.answer.box_xyxy
        return float(box is not None and box_l1(box, target.box_xyxy) < self.threshold)


class PointL1(RewardTerm):
    """1 where both points lie in the *predicted* box and near the target's points (PixelThink, released reward).

    Args:
        threshold: Mean distance under the better pairing that must not be reached, in answer units (pixels).
    """

    def __init__(self, threshold: float = 100.0) -> None:
        self.threshold = _checked("PointL1", threshold)

    def __call__(self, case: ScoringCase) -> float:
        """The term's value for one response."""
        target, box, points = single_target(case), case.answer.box_xyxy, case.answer.points_xy
        if box is None or points is None or len(points) != 2 or not all(point_in_box(p, box) for p in points):
            return 0.0
        return float(paired_point_distance((points[0], points[1]), target.points_xy) < self.threshold)


def single_target(case: ScoringCase) -> Target:
    """The one target of a single-object case.

    Raises:
        UserError: the case has none or several; names the sample.
    """
    if len(case.targets) != 1:
        raise UserError(f"sample {case.id}: a single-object reward needs exactly 1 target, found {len(case.targets)}")
    return case.targets[0]


def _checked(owner: str, threshold: float) -> float:
    if not math.isfinite(threshold) or threshold < 0:
        raise UserError(f"{owner}: threshold must be a finite number, not negative, got {threshold}")
    return threshold
