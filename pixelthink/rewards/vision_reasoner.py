"""VisionReasoner's multi-object reward: format, matched accuracy and no repetition, without a length score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from pixelthink.errors import UserError
from pixelthink.geometry import Target, box_iou, point_in_box
from pixelthink.parsing import Answer, AnswerObject
from pixelthink.rewards.base import Reward, RewardTerm
from pixelthink.rewards.localization import box_l1
from pixelthink.rewards.terms import named_terms, set_up, values_of
from pixelthink.segmenters.base import Segmenter
from pixelthink.types import Score, ScoringCase

OWN_PARTS = ("format", "accuracy", "non_repeat")
"""Names of the released parts."""

_UNREADABLE = frozenset({"missing_key", "not_a_list", "wrong_length", "not_a_number"})


class VisionReasonerReward(Reward):
    """`format (0 to 3) + accuracy (0 to 3) + non_repeat (0 or 1)` (VisionReasoner, released reward).

    * format: 1 for `<think>…</think><answer>…</answer>`, and the objects' mean of {box of four, point of two}.
    * accuracy: predicted and true objects are matched one to one so that the number of hits is greatest; a pair can
      have three: IoU, box distance, and point distance with the point in its own box. Hits / max(#predicted, #true).
      An object without readable box or point makes the whole accuracy 0, as in the released code.
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
        values = format_score(case.answer), self._accuracy(case), non_repeat(case.text)
        return dict(zip(OWN_PARTS, values, strict=True))

    def _accuracy(self, case: ScoringCase) -> float:
        """Hits of the best matching, per object of the longer list; 0 to 3."""
        objects, targets = case.answer.objects, case.targets[: self.max_objects]
        if not objects and not targets:
            return self.no_target_accuracy if case.answer.failure is None else 0.0
        if not objects or not targets or any(o.failure in _UNREADABLE for o in objects):
            return 0.0
        hits = self._hits(objects[: self.max_objects], targets)
        rows, columns = linear_sum_assignment(hits, maximize=True)
        return float(hits[rows, columns].sum()) / max(hits.shape)

    def _hits(self, objects: Sequence[AnswerObject], targets: Sequence[Target]) -> np.ndarray:
        """Hits of each predicted with each true object: float (P, T), each 0 to 3."""
        return np.array([[self._hits_of(o, t) for t in targets] for o in objects], dtype=np.float64)

    def _hits_of(self, found: AnswerObject, target: Target) -> int:
        """Hits of one pair; a box or point that is not finite has none."""
        box, point, hits = found.box_xyxy, found.point_xy, 0
        if box is not None:
            hits += box_iou(box, target.box_xyxy) > self.iou_threshold
            hits += box_l1(box, target.box_xyxy) < self.box_threshold
        if box is not None and point is not None and point_in_box(point, box):
            hits += float(np.hypot(*np.subtract(point, target.points_xy[0]))) < self.point_threshold
        return hits


def format_score(answer: Answer) -> float:
    """1 for the shape of the response plus, per object, 1 for a box of four and 1 for a point of two, averaged.

    Summed in the released order, so that the last bit agrees too.
    """
    per_object = 0.0
    for item in answer.objects:
        per_object += (float(item.box_listed) + float(item.point_listed)) / len(answer.objects)
    return float(answer.think_ok) + per_object


def non_repeat(text: str) -> float:
    """1 unless at least two sentences repeat an earlier one; sentences are the stripped pieces between full stops."""
    sentences = [piece.strip() for piece in text.split(".") if piece.strip()]
    return float(len(sentences) - len(set(sentences)) < 2)
