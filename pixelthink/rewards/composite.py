"""PixelThink's reward: the sum of the terms times the length score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import lazy_instance

from pixelthink.components import resolved
from pixelthink.errors import UserError
from pixelthink.rewards.base import LengthScore, Reward, RewardTerm
from pixelthink.rewards.format import AnswerFormat, ThinkFormat
from pixelthink.rewards.length import L1Exact, ReleasedBudget
from pixelthink.rewards.localization import BoxIoU, BoxL1, PointL1
from pixelthink.rewards.terms import named_terms, set_up, values_of
from pixelthink.segmenters.base import Segmenter
from pixelthink.types import Score, ScoringCase


class PixelThinkReward(Reward):
    """`length_score × (think_format + answer_format + box_iou + point_l1 + box_l1)` (PixelThink, released reward).

    With the defaults the result lies in [0, 5]. A length score may combine otherwise, see `LengthScore.combine`.

    Args:
        think_format: Term logged as `think_format`.
        answer_format: Term logged as `answer_format`.
        iou: Term logged as `box_iou`.
        points: Term logged as `point_l1`.
        box_l1: Term logged as `box_l1`.
        length: How much of the sum a response keeps for its length.
        extra: Further terms to add, each logged under its class name.

    Raises:
        UserError: two terms would be logged under one name.
    """

    def __init__(
        self,
        think_format: RewardTerm = lazy_instance(ThinkFormat),
        answer_format: RewardTerm = lazy_instance(AnswerFormat),
        iou: RewardTerm = lazy_instance(BoxIoU),
        points: RewardTerm = lazy_instance(PointL1),
        box_l1: RewardTerm = lazy_instance(BoxL1),
        length: LengthScore = lazy_instance(ReleasedBudget),
        extra: list[RewardTerm] | None = None,
    ) -> None:
        own = {
            "think_format": think_format,
            "answer_format": answer_format,
            "box_iou": iou,
            "point_l1": points,
            "box_l1": box_l1,
        }
        self.terms = named_terms("PixelThinkReward", own, extra)
        self.length = resolved(length)

    def setup(self, device: str, segmenter: Segmenter) -> None:
        """Sets up the terms."""
        set_up(self.terms, device, segmenter)

    def score(self, case: ScoringCase) -> Score:
        """Score of one response. Raises UserError, naming the sample, where a term lacks what it needs."""
        return self.score_all([case])[0]

    def score_all(self, cases: Sequence[ScoringCase]) -> list[Score]:
        """Scores of a step's responses, term by term."""
        return [self._combined(case, parts) for case, parts in zip(cases, values_of(self.terms, cases), strict=True)]

    def accuracy(self, parts: Mapping[str, float]) -> float:
        """What the length score is combined with, from the terms of one response."""
        return sum(parts.values())

    def _combined(self, case: ScoringCase, parts: Mapping[str, float]) -> Score:
        """The reward of one response from its terms and its length."""
        length = self.length(case)
        return Score(
            reward=self.length.combine(self.accuracy(parts), length),
            parts=parts,
            length_used=length.used,
            length_budget=length.budget,
            length_score=length.score,
        )


class L1Reward(PixelThinkReward):
    """L1's reward (arXiv 2503.04697, `math_reward.py` of cmu-l3/l1): a response is correct, 1, or it is not, 0, and its
    length adds to that or scales it, see `L1Exact` and `L1Max`.

    In L1 a mathematician's answer is correct or not. Here a response is correct where all terms of `correct` are 1.

    Args:
        correct: Names of these terms. By default both formats, without which L1 calls a response wrong, and a box whose
            IoU with the true one is over 0.5.
        length: How the length counts.
        terms: The terms, as of `PixelThinkReward`; those that are not in `correct` are logged only.

    Raises:
        UserError: there is no such term, or every reward would be 0.
    """

    def __init__(
        self,
        correct: tuple[str, ...] = ("think_format", "answer_format", "box_iou"),
        length: LengthScore = lazy_instance(L1Exact),
        **terms: Any,
    ) -> None:
        super().__init__(length=length, **terms)
        if not correct or not set(correct) <= self.terms.keys():
            raise UserError(
                f"L1Reward: correct must name terms among {', '.join(self.terms)}; got {', '.join(correct)}"
            )
        if isinstance(self.length, L1Exact) and not self.length.additive:
            raise UserError("L1Reward: with L1Exact(additive=False) every reward is 0: leave additive on, or use L1Max")
        self.correct = tuple(correct)

    def accuracy(self, parts: Mapping[str, float]) -> float:
        """1 where all that makes a response correct is 1, else 0."""
        return float(all(parts[name] == 1.0 for name in self.correct))
