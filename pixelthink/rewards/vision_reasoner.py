"""VisionReasoner's multi-object reward: format, matched accuracy and no repetition, without a length score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from pixelthink.errors import UserError
from pixelthink.geometry import Target
from pixelthink.parsing import answer_list_json, parse_completion
from pixelthink.rewards.base import Reward, RewardTerm
from pixelthink.rewards.terms import named_terms, set_up, values_of
from pixelthink.segmenters.base import Segmenter
from pixelthink.types import Score, ScoringCase

OWN_PARTS = ("format", "accuracy", "non_repeat")
"""Names of the released parts."""


class VisionReasonerReward(Reward):
    """`format (0 to 3) + accuracy (0 to 3) + non_repeat (0 or 1)` (VisionReasoner, released reward).

    * format: 1 for `<think>…</think><answer>…</answer>`, and the objects' mean of {box of four, point of two}.
    * accuracy: predicted and true objects are matched one to one so that the number of hits is greatest; a pair can
      have three: IoU, box distance, and point distance with the point in its own box. Hits / max(#predicted, #true).
      An entry that the released code cannot compute with makes the whole accuracy 0.
    * non_repeat: 0 where sentences, split at ".", repeat an earlier one twice or more.

    Of a target only the first point counts, the style has one point an object.

    Args:
        iou_threshold: IoU that has to be exceeded.
        box_threshold: Mean absolute corner difference that must not be reached, in answer units (pixels).
        point_threshold: Distance of the points that must not be reached, in answer units (pixels).
        max_objects: Further objects of an answer or of the truth are left out of the accuracy.
        no_target_accuracy: Accuracy where neither the answer nor the truth has an object; the released code gives 0,
            3 rewards saying that there is none.
        extra: Terms to add, each logged under its class name; the released reward has none.

    Raises:
        UserError: two parts would be logged under one name, or `max_objects` leaves nothing.
    """

    answer_style = "visionreasoner"

    def __init__(
        self,
        iou_threshold: float = 0.5,
        box_threshold: float = 10.0,
        point_threshold: float = 30.0,
        max_objects: int = 120,
        no_target_accuracy: float = 0.0,
        extra: list[RewardTerm] | None = None,
    ) -> None:
        if max_objects < 1:
            raise UserError(f"VisionReasonerReward: max_objects must be at least 1, got {max_objects}")
        self.iou_threshold = iou_threshold
        self.box_threshold = box_threshold
        self.point_threshold = point_threshold
        self.max_objects = max_objects
        self.no_target_accuracy = no_target_accuracy
        self.terms = named_terms("VisionReasonerReward", {}, extra, taken=OWN_PARTS)

    def setup(self, device: str, segmenter: Segmenter) -> None:
        """Sets up the extra terms."""
        set_up(self.terms, device, segmenter)

    def score(self, case: ScoringCase) -> Score:
        """Score of one response, with parts format, accuracy, non_repeat, and the extra terms."""
        return self.score_all([case])[0]

    def score_all(self, cases: Sequence[ScoringCase]) -> list[Score]:
        """Scores of a step's responses."""
        added = values_of(self.terms, cases)
        rows = [self._own_parts(case) | extra for case, extra in zip(cases, added, strict=True)]
        return [Score(reward=sum(parts.values()), parts=parts) for parts in rows]

    def _own_parts(self, case: ScoringCase) -> dict[str, float]:
        values = format_score(case.text), self._accuracy(case), non_repeat(case.text)
        return dict(zip(OWN_PARTS, values, strict=True))

    def _accuracy(self, case: ScoringCase) -> float:
        """Hits of the best matching, per object of the longer list; 0 to 3."""
        objects, targets = answer_list_json(case.text), case.targets[: self.max_objects]
        if objects == [] and not targets:
            return self.no_target_accuracy
        try:
            with np.errstate(all="ignore"):
                hits = self._hits(objects, targets)
            rows, columns = linear_sum_assignment(hits, maximize=True)
        except (TypeError, LookupError, ValueError, ArithmeticError):
            return 0.0
        return float(hits[rows, columns].sum()) / max(hits.shape)

    def _hits(self, objects: Any, targets: Sequence[Target]) -> np.ndarray:
        """Hits of each predicted with each true object, float (P, T), each 0 to 3; raises where the released code does.

        Arrays take whatever JSON has, as there: `true` is 1, and integers that no int64 holds make arrays of objects.
        """
        boxes = np.array([item["bbox_2d"] for item in objects][: self.max_objects])
        points = np.array([item["point_2d"] for item in objects][: self.max_objects])
        true_boxes = whole_numbers([target.box_xyxy for target in targets])
        true_points = whole_numbers([target.points_xy[0] for target in targets])
        near = np.mean(np.abs(boxes[:, None, :] - true_boxes), axis=2) < self.box_threshold
        close = np.sqrt(np.sum((points[:, None, :] - true_points) ** 2, axis=2)) < self.point_threshold
        in_x = (points[:, 0] >= boxes[:, 0]) & (points[:, 0] <= boxes[:, 2])
        in_y = (points[:, 1] >= boxes[:, 1]) & (points[:, 1] <= boxes[:, 3])
        overlap = box_ious(boxes, true_boxes) > self.iou_threshold
        return overlap.astype(float) + near.astype(float) + (close & (in_x & in_y)[:, None]).astype(float)


def box_ious(boxes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """IoU of each of P boxes (P, 4) with each of T (T, 4), with the +1 pixel convention: (P, T)."""
    x1, y1, x2, y2 = np.split(boxes, 4, axis=1)
    u1, v1, u2, v2 = (column.T for column in np.split(targets, 4, axis=1))
    width = np.maximum(0, np.minimum(x2, u2) - np.maximum(x1, u1) + 1)
    height = np.maximum(0, np.minimum(y2, v2) - np.maximum(y1, v1) + 1)
    shared = width * height
    return shared / ((x2 - x1 + 1) * (y2 - y1 + 1) + (u2 - u1 + 1) * (v2 - v1 + 1) - shared)


def whole_numbers(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """An array, of int64 where all numbers are whole, as published truths are."""
    array = np.array(rows, dtype=np.float64)
    return array.astype(np.int64) if np.array_equal(array, np.trunc(array)) else array


def format_score(text: str) -> float:
    """1 for the shape of the response plus, per object, 1 for a box of four and 1 for a point of two, averaged.

    Summed in the released order, so that the last bit agrees too. An entry that is no object ends the sum there.
    """
    shape = float(parse_completion(text, "visionreasoner").think_ok)
    data, per_object = answer_list_json(text), 0.0
    if not isinstance(data, list):
        return shape  # of a JSON object the released code takes the keys, none of which has a box
    for item in data:
        if not isinstance(item, dict):
            if isinstance(item, str | list) and not {"bbox_2d", "point_2d"} & _members(item):
                continue
            break
        listed = (
            isinstance(item.get(key), list) and len(item[key]) == n for key, n in (("bbox_2d", 4), ("point_2d", 2))
        )
        per_object += float(sum(listed)) / len(data)
    return shape + per_object


def _members(item: str | list[Any]) -> set[str]:
    """Which of the two keys `in` finds in a text or list."""
    return {key for key in ("bbox_2d", "point_2d") if key in item}


def non_repeat(text: str) -> float:
    """1 unless at least two sentences repeat an earlier one; sentences are the stripped pieces between full stops."""
    sentences = [piece.strip() for piece in text.split(".") if piece.strip()]
    return float(len(sentences) - len(set(sentences)) < 2)
