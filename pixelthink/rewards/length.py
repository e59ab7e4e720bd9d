"""Length scores: the released budget rule, a token budget under which brevity pays, L1's two rules, and none at all.

Their constants stand here, as constructor defaults, and nowhere else.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from pixelthink.errors import UserError
from pixelthink.rewards.base import LengthResult, LengthScore
from pixelthink.types import ScoringCase, TokenTarget

LengthMode = Literal["response_words", "reasoning_tokens"]
"""What a length rule counts: white-space separated words of the whole response, or tokens inside `<think>`."""


def l1_exact(used_tokens: float, target_tokens: float, alpha: float) -> float:
    """L1 (LCPO-Exact): −α·|used − target|, at most 0.

    Args:
        used_tokens: Tokens written.
        target_tokens: Tokens asked for.
        alpha: Loss per token.
    """
    return (1 - alpha * abs(used_tokens - target_tokens)) - 1  # in this order, for the released rounding


def l1_max(used_tokens: float, target_tokens: float, alpha: float) -> float:
    """L1 (LCPO-Max): (clip(−α·(used − target), −1, 1) + 1) / 2, from 0 to 1; one half exactly on target.

    Args:
        used_tokens: Tokens written.
        target_tokens: Tokens asked for.
        alpha: Loss per token.
    """
    return (min(max(-alpha * (used_tokens - target_tokens), -1.0), 1.0) + 1) / 2


class NoLengthScore(LengthScore):
    """Length does not count: the score is always 1, no budget, nothing needed."""

    def __call__(self, case: ScoringCase) -> LengthResult:
        """A score of 1."""
        return LengthResult(1.0)


class ReleasedBudget(LengthScore):
    """The released rule, bit for bit (PixelThink, released reward).

        length_score = clip(1 − (length_used − budget) / slope, 0, 1)
        budget       = hard_budget + uncertainty_weight · uncertainty    where hard_threshold ≤ difficulty
                     = none, score 1                                     in between
                     = easy_budget                                       where difficulty < easy_threshold

    Being shorter than the budget is worth nothing, and a budget of 96 words hardly binds a chain of 90 tokens:
    `TokenBudget` answers both.

    Args:
        easy_threshold: Difficulty below which a query is easy.
        hard_threshold: Difficulty from which a query is hard.
        easy_budget: Budget of an easy query, in words or tokens as `length_mode` says.
        hard_budget: Budget of a hard query at uncertainty 0.
        uncertainty_weight: What uncertainty 1 adds to a hard query's budget.
        slope: Excess over the budget at which the score reaches 0.
        length_mode: What is counted: "response_words", the white-space separated words of the whole response, or
            "reasoning_tokens", the tokens inside `<think>`.

    Raises:
        UserError: if the thresholds are out of order, a budget or the weight is negative, the slope is not positive, or
            the mode is unknown.
    """

    def __init__(
        self,
        easy_threshold: float = 3.5,
        hard_threshold: float = 5.0,
        easy_budget: float = 96.0,
        hard_budget: float = 256.0,
        uncertainty_weight: float = 25.0,
        slope: float = 500.0,
        length_mode: LengthMode = "response_words",
    ) -> None:
        if not easy_threshold <= hard_threshold:
            raise UserError("ReleasedBudget: easy_threshold must not exceed hard_threshold")
        for name, value in (("easy_budget", easy_budget), ("hard_budget", hard_budget)):
            _not_negative("ReleasedBudget", name, value)
        _not_negative("ReleasedBudget", "uncertainty_weight", uncertainty_weight)
        if not slope > 0:
            raise UserError(f"ReleasedBudget: slope must be positive, got {slope}")
        self.easy_threshold = easy_threshold
        self.hard_threshold = hard_threshold
        self.easy_budget = easy_budget
        self.hard_budget = hard_budget
        self.uncertainty_weight = uncertainty_weight
        self.slope = slope
        self.length_mode = known_length_mode(length_mode)

    def __call__(self, case: ScoringCase) -> LengthResult:
        """The score lies in [0, 1].

        Raises:
            UserError: no difficulty; no uncertainty for a hard query; no token count where tokens are counted.
        """
        used = len(case.text.split()) if self.length_mode == "response_words" else _reasoning_tokens(case)
        budget = self.budget(case)
        if budget is None:
            return LengthResult(1.0, used)
        per_unit = 1.0 / self.slope  # multiplied, not divided by: for the released rounding
        return LengthResult(min(max(1.0 - (used - budget) * per_unit, 0.0), 1.0), used, budget)

    def budget(self, case: ScoringCase) -> float | None:
        """The budget by the sample's difficulty; None in the medium range."""
        difficulty = _difficulty(case)
        if difficulty >= self.hard_threshold:
            return self.hard_budget + self.uncertainty_weight * _uncertainty(case)
        return self.easy_budget if difficulty < self.easy_threshold else None


class TokenBudget(LengthScore):
    """A budget of `<think>` tokens that follows the difficulty, under which brevity pays.

        t      = clip((difficulty − easy_difficulty) / (hard_difficulty − easy_difficulty), 0, 1)
        budget = easy_tokens + t·(hard_tokens − easy_tokens) + uncertainty_tokens·uncertainty
        bonus  = easy_bonus + t·(hard_bonus − easy_bonus)
        x      = used / budget
        score  = 1 + bonus·(1 − x)                              where x ≤ 1
               = floor + (1 − floor)·exp(−(x − 1) / tolerance)  where x > 1

    Ours. What differs from the released rule, and why: tokens inside `<think>` are counted, not words of everything;
    medium queries have a budget too, so that no jump of difficulty frees a query of it; a token more always costs
    something, below the budget by the bonus and beyond it by the decay, so that a group of equally right responses
    always has a spread; and the bonus fades with the difficulty, so that a hard query may use what it is granted.
    The score is continuous, falls with every token, and lies in (floor, 1 + bonus].

    A response without proper `<think>` tags has no bonus: else leaving them out would be the shortest reasoning.

    Args:
        easy_tokens: Tokens granted up to `easy_difficulty`.
        hard_tokens: Tokens granted from `hard_difficulty` on.
        easy_difficulty: Difficulty (1 to 10) up to which a query is easy.
        hard_difficulty: Difficulty (1 to 10) from which a query is hard; in between everything is interpolated.
        uncertainty_tokens: Tokens that uncertainty 1 adds to the budget; 0 asks for no uncertainty.
        easy_bonus: What writing nothing would earn on an easy query, as a share of the accuracy.
        hard_bonus: The same on a hard query.
        tolerance: Excess over the budget, as a share of it, at which the score has fallen to 1/e of its way to the
            floor.
        floor: What remains of the accuracy however long the reasoning, 0 to 1.

    Raises:
        UserError: if a number is out of its range; says which.
    """

    def __init__(
        self,
        easy_tokens: float = 32.0,
        hard_tokens: float = 96.0,
        easy_difficulty: float = 3.5,
        hard_difficulty: float = 5.0,
        uncertainty_tokens: float = 25.0,
        easy_bonus: float = 0.25,
        hard_bonus: float = 0.05,
        tolerance: float = 0.5,
        floor: float = 0.0,
    ) -> None:
        if not (easy_tokens > 0 and hard_tokens > 0 and tolerance > 0):
            raise UserError("TokenBudget: easy_tokens, hard_tokens and tolerance must be positive")
        if not easy_difficulty < hard_difficulty:
            raise UserError("TokenBudget: easy_difficulty must lie below hard_difficulty")
        if not (uncertainty_tokens >= 0 and easy_bonus >= 0 and hard_bonus >= 0):
            raise UserError("TokenBudget: uncertainty_tokens, easy_bonus and hard_bonus must not be negative")
        if not 0 <= floor <= 1:
            raise UserError(f"TokenBudget: floor must lie in [0, 1], got {floor}")
        self.easy_tokens = easy_tokens
        self.hard_tokens = hard_tokens
        self.easy_difficulty = easy_difficulty
        self.hard_difficulty = hard_difficulty
        self.uncertainty_tokens = uncertainty_tokens
        self.easy_bonus = easy_bonus
        self.hard_bonus = hard_bonus
        self.tolerance = tolerance
        self.floor = floor

    def __call__(self, case: ScoringCase) -> LengthResult:
        """Counts tokens inside `<think>`.

        Raises:
            UserError: no difficulty, no token count, or no uncertainty where it is asked for.
        """
        used, hardness = _reasoning_tokens(case), self._hardness(case)
        budget = self.easy_tokens + hardness * (self.hard_tokens - self.easy_tokens)
        if self.uncertainty_tokens > 0:
            budget += self.uncertainty_tokens * _uncertainty(case)
        excess = used / budget - 1
        if excess > 0:
            return LengthResult(self.floor + (1 - self.floor) * math.exp(-excess / self.tolerance), used, budget)
        bonus = self.easy_bonus + hardness * (self.hard_bonus - self.easy_bonus)
        return LengthResult(1.0 - bonus * excess if case.answer.think_ok else 1.0, used, budget)

    def _hardness(self, case: ScoringCase) -> float:
        """Where the sample lies between easy (0) and hard (1)."""
        span = self.hard_difficulty - self.easy_difficulty
        return min(max((_difficulty(case) - self.easy_difficulty) / span, 0.0), 1.0)


class L1Exact(LengthScore):
    """L1 (LCPO-Exact): the response should have as many tokens as the prompt asks for; score −α·|used − target| ≤ 0.

    The whole response counts, its end token too, as in L1's `main_ppo.py`. The prompt asks where
    `data.prompt.target` is set.

    Args:
        target_tokens: Tokens aimed at where the prompt asks for no number; None makes that an error.
        alpha: Loss per token.
        additive: Whether the score is added to the accuracy; else the reward is accuracy · max(0, score), which for
            this rule is 0 throughout.
    """

    def __init__(self, target_tokens: int | None = None, alpha: float = 0.0003, additive: bool = True) -> None:
        _check_l1("L1Exact", target_tokens, alpha)
        self.target_tokens = target_tokens
        self.alpha = alpha
        self.additive = additive

    def __call__(self, case: ScoringCase) -> LengthResult:
        """Raises UserError where nobody counted the response's tokens, or the prompt asks for no exact number."""
        used, target = _response_tokens(case), _token_target(case, self.target_tokens, at_most=False)
        if target.at_most:
            raise UserError(
                f"sample {case.id}: the prompt asks for at most {target.tokens} tokens, which L1Exact does not score: "
                "use L1Max, or set data.prompt.target.rule to exact"
            )
        return LengthResult(l1_exact(used, target.tokens, self.alpha), used, target.tokens, self.additive)

    def combine(self, accuracy: float, length: LengthResult) -> float:
        """Accuracy and score, added or multiplied as L1 does it."""
        return _l1_combine(accuracy, length)


class L1Max(LengthScore):
    """L1 (LCPO-Max): the response should have at most the target's tokens; (clip(−α·(used − target), −1, 1) + 1) / 2.

    L1-Max is trained on prompts of both kinds. A prompt that asks for an exact number is scored by `l1_exact`, which is
    added to the accuracy (the paper's dual objective; L1's code would multiply both kinds by one switch, and every
    exact prompt would earn 0).

    Args:
        target_tokens: Most tokens wanted where the prompt asks for no number; None makes that an error.
        alpha: Loss per token.
        multiplicative: Whether the reward is accuracy · score; else the score is added to the accuracy.
    """

    def __init__(self, target_tokens: int | None = None, alpha: float = 0.0003, multiplicative: bool = True) -> None:
        _check_l1("L1Max", target_tokens, alpha)
        self.target_tokens = target_tokens
        self.alpha = alpha
        self.multiplicative = multiplicative

    def __call__(self, case: ScoringCase) -> LengthResult:
        """Raises UserError where nobody counted the response's tokens or said how many there should be."""
        used, target = _response_tokens(case), _token_target(case, self.target_tokens, at_most=True)
        if not target.at_most:
            return LengthResult(l1_exact(used, target.tokens, self.alpha), used, target.tokens, added=True)
        score = l1_max(used, target.tokens, self.alpha)
        return LengthResult(score, used, target.tokens, added=not self.multiplicative)

    def combine(self, accuracy: float, length: LengthResult) -> float:
        """Accuracy and score, added or multiplied as L1 does it."""
        return _l1_combine(accuracy, length)


def _l1_combine(accuracy: float, length: LengthResult) -> float:
    """L1 (LCPO): accuracy + score, or accuracy · max(0, score)."""
    return accuracy + length.score if length.added else max(0.0, length.score) * accuracy


def known_length_mode(mode: str) -> LengthMode:
    """The mode, if it is one.

    Raises:
        UserError: it is not.
    """
    for known in get_args(LengthMode):
        if mode == known:
            return known
    raise UserError(f"unknown length_mode {mode!r}; known: {', '.join(get_args(LengthMode))}")


def _difficulty(case: ScoringCase) -> float:
    if case.difficulty is None:
        raise UserError(
            f"sample {case.id}: no difficulty, which the length budget needs: set data.train.difficulty_file (see "
            "tools/rate_difficulty.py and tools/estimate_difficulty.py), or model.reward.length=NoLengthScore"
        )
    return _within(case, "difficulty", case.difficulty, 1, 10)


def _uncertainty(case: ScoringCase) -> float:
    if case.uncertainty is None:
        raise UserError(
            f"sample {case.id}: no uncertainty (top-2 probabilities), which the length budget needs: the rollout "
            "engine gave none, or the row has no 'uncertainty'"
        )
    return _within(case, "uncertainty", case.uncertainty, 0, 1)


def _within(case: ScoringCase, name: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise UserError(f"sample {case.id}: {name} must lie in [{low}, {high}], got {value}")
    return value


def _not_negative(owner: str, name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{owner}: {name} must be a finite number, not negative, got {value}")


def _check_l1(owner: str, target_tokens: int | None, alpha: float) -> None:
    _not_negative(owner, "alpha", alpha)
    if target_tokens is not None and target_tokens < 1:
        raise UserError(f"{owner}: target_tokens must be at least 1, got {target_tokens}")


def _response_tokens(case: ScoringCase) -> int:
    if case.response_tokens is None:
        raise UserError(
            f"sample {case.id}: no count of response tokens, which L1 needs: the row has no 'response_token_count'"
        )
    return case.response_tokens


def _token_target(case: ScoringCase, otherwise: int | None, at_most: bool) -> TokenTarget:
    """What the prompt asked for, else a rule's own number."""
    if case.token_target is not None:
        return case.token_target
    if otherwise is None:
        raise UserError(
            f"sample {case.id}: the prompt asks for no number of tokens, which L1 needs: set data.prompt.target (see "
            "configs/reward/l1_exact.yaml), or model.reward.length.target_tokens"
        )
    return TokenTarget(otherwise, at_most)


def _reasoning_tokens(case: ScoringCase) -> int:
    if case.reasoning_tokens is None:
        raise UserError(f"sample {case.id}: no count of reasoning tokens, which the length score needs")
    if case.reasoning_tokens < 0:
        raise UserError(f"sample {case.id}: reasoning tokens must not be negative, got {case.reasoning_tokens}")
    return case.reasoning_tokens
