"""The two format terms: does the response look as asked for? What was answered does not matter here."""

from __future__ import annotations

from pixelthink.rewards.base import RewardTerm
from pixelthink.types import ScoringCase


class ThinkFormat(RewardTerm):
    r"""1 where the whole response is `<think>…</think>`, white space, `<answer>…</answer>`, else 0.

    PixelThink, released reward: a full match of `<think>.*?</think>\s*<answer>.*?</answer>`.
    """

    def __call__(self, case: ScoringCase) -> float:
        """The term's value for one response."""
        return float(case.answer.think_ok)


class AnswerFormat(RewardTerm):
    """1 where the answer has its lists with their lengths, whatever the lists hold, else 0.

    PixelThink, released reward: the first `{[^}]+}` of the response parses as JSON with `bbox` a list of 4 and
    `points_1`, `points_2` lists of 2.
    """

    def __call__(self, case: ScoringCase) -> float:
        """The term's value for one response."""
        return float(case.answer.answer_ok)
