"""Length scores: by hand, against the released functions, and what holds for all inputs."""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelthink.errors import UserError
from pixelthink.parsing import parse_completion
from pixelthink.rewards.base import LengthResult, LengthScore
from pixelthink.rewards.composite import L1Reward
from pixelthink.rewards.length import L1Exact, L1Max, NoLengthScore, ReleasedBudget, TokenBudget, l1_exact, l1_max
from pixelthink.types import ScoringCase, TokenTarget
from tests.support import golden_rows

DIFFICULTY = st.floats(1, 10)
UNCERTAINTY = st.floats(0, 1)
TOKENS = st.integers(0, 5000)
THOUGHT = "<think>a b c</think><answer>d</answer>"


def case(text: str = THOUGHT, **known: Any) -> ScoringCase:
    return ScoringCase("s1", text, parse_completion(text), (), **known)


@pytest.mark.parametrize(
    ("words", "difficulty", "uncertainty", "budget", "score"),
    [
        (96, 1.0, None, 96.0, 1.0),
        (106, 3.49, None, 96.0, 0.98),
        (596, 1.0, None, 96.0, 0.0),
        (9999, 1.0, None, 96.0, 0.0),
        (9999, 3.5, None, None, 1.0),
        (9999, 4.99, None, None, 1.0),
        (256, 5.0, 0.0, 256.0, 1.0),
        (371, 10.0, 0.6, 271.0, 0.8),
    ],
)
def test_released_budget_by_hand(
    words: int, difficulty: float, uncertainty: float | None, budget: float | None, score: float
) -> None:
    found = ReleasedBudget()(case("w " * words, difficulty=difficulty, uncertainty=uncertainty))
    assert found == LengthResult(pytest.approx(score, abs=1e-12), words, budget)


def test_released_budget_counts_as_told() -> None:
    known: dict[str, Any] = {"difficulty": 1.0, "reasoning_tokens": 346}
    rule = ReleasedBudget()
    assert rule(case(**known)).used == 3
    assert ReleasedBudget(length_mode="reasoning_tokens")(case(**known)) == LengthResult(0.5, 346, 96.0)
    with pytest.raises(ValueError, match="unknown length_mode 'letters'; known: response_words, reasoning_tokens"):
        ReleasedBudget(length_mode="letters")  # type: ignore[arg-type]


@given(DIFFICULTY, UNCERTAINTY, TOKENS, TOKENS)
def test_released_budget_is_bounded_and_falls(difficulty: float, uncertainty: float, first: int, second: int) -> None:
    rule = ReleasedBudget(length_mode="reasoning_tokens")
    known: dict[str, Any] = {"difficulty": difficulty, "uncertainty": uncertainty}
    short = rule(case(reasoning_tokens=min(first, second), **known)).score
    long = rule(case(reasoning_tokens=max(first, second), **known)).score
    assert 0.0 <= long <= short <= 1.0


def tiny_world() -> TokenBudget:
    return TokenBudget(easy_tokens=8, hard_tokens=30, uncertainty_tokens=10, easy_bonus=0.4, hard_bonus=0.0, floor=0.1)


@pytest.mark.parametrize(
    ("tokens", "difficulty", "uncertainty", "budget", "score"),
    [
        (0, 1.0, 0.0, 8.0, 1.4),
        (4, 2.0, 0.0, 8.0, 1.2),
        (8, 3.5, 0.0, 8.0, 1.0),
        (16, 1.0, 0.0, 8.0, 0.1 + 0.9 * math.exp(-2)),
        (9, 1.0, 1.0, 18.0, 1.2),
        (0, 4.25, 0.0, 19.0, 1.2),
        (0, 9.0, 0.0, 30.0, 1.0),
        (45, 5.0, 0.0, 30.0, 0.1 + 0.9 * math.exp(-1)),
    ],
)
def test_token_budget_by_hand(tokens: int, difficulty: float, uncertainty: float, budget: float, score: float) -> None:
    found = tiny_world()(case(reasoning_tokens=tokens, difficulty=difficulty, uncertainty=uncertainty))
    assert found == LengthResult(pytest.approx(score, abs=1e-12), tokens, budget)


def test_token_budget_pays_no_bonus_for_missing_tags() -> None:
    known: dict[str, Any] = {"reasoning_tokens": 0, "difficulty": 1.0, "uncertainty": 0.0}
    assert tiny_world()(case("<answer>d</answer>", **known)).score == 1.0


@given(DIFFICULTY, UNCERTAINTY, TOKENS)
def test_token_budget_is_bounded_and_every_token_costs(difficulty: float, uncertainty: float, tokens: int) -> None:
    rule = TokenBudget()
    known: dict[str, Any] = {"difficulty": difficulty, "uncertainty": uncertainty}
    score = rule(case(reasoning_tokens=tokens, **known)).score
    longer = rule(case(reasoning_tokens=tokens + 1, **known)).score
    assert rule.floor <= longer < score <= 1 + rule.easy_bonus


@given(UNCERTAINTY, st.integers(1, 300), DIFFICULTY, DIFFICULTY)
def test_token_budget_grants_hard_queries_more(uncertainty: float, tokens: int, first: float, second: float) -> None:
    rule = TokenBudget()
    known: dict[str, Any] = {"uncertainty": uncertainty, "reasoning_tokens": tokens}
    easy_budget = rule(case(difficulty=min(first, second), **known)).budget
    hard_budget = rule(case(difficulty=max(first, second), **known)).budget
    assert easy_budget is not None
    assert hard_budget is not None
    assert easy_budget <= hard_budget


@pytest.mark.parametrize(
    "wrong",
    [{"easy_tokens": 0}, {"hard_tokens": -1}, {"tolerance": 0}, {"easy_difficulty": 5.0}, {"uncertainty_tokens": -1},
     {"easy_bonus": -0.1}, {"floor": 1.1}, {"easy_tokens": math.nan}],
)  # fmt: skip
def test_token_budget_refuses_bad_numbers(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="TokenBudget"):
        TokenBudget(**wrong)


def test_released_budget_refuses_bad_numbers() -> None:
    with pytest.raises(ValueError, match="easy_threshold"):
        ReleasedBudget(easy_threshold=6.0)
    with pytest.raises(ValueError, match="slope"):
        ReleasedBudget(slope=0.0)


@pytest.mark.parametrize(
    ("rule", "known", "message"),
    [
        (ReleasedBudget(), {}, "sample s1: no difficulty"),
        (ReleasedBudget(), {"difficulty": 7.0}, "sample s1: no uncertainty"),
        (ReleasedBudget(), {"difficulty": 11.0}, r"sample s1: difficulty must lie in \[1, 10\], got 11.0"),
        (ReleasedBudget(), {"difficulty": math.nan}, "sample s1: difficulty must lie"),
        (ReleasedBudget(), {"difficulty": 7.0, "uncertainty": 1.5}, "sample s1: uncertainty must lie"),
        (
            ReleasedBudget(length_mode="reasoning_tokens"),
            {"difficulty": 1.0},
            "sample s1: no count of reasoning tokens",
        ),
        (TokenBudget(), {"difficulty": 1.0, "uncertainty": 0.0}, "sample s1: no count of reasoning tokens"),
        (TokenBudget(), {"reasoning_tokens": 1, "uncertainty": 0.0}, "sample s1: no difficulty"),
        (TokenBudget(), {"reasoning_tokens": 1, "difficulty": 1.0}, "sample s1: no uncertainty"),
        (
            TokenBudget(),
            {"reasoning_tokens": -1, "difficulty": 1.0},
            "sample s1: reasoning tokens must not be negative",
        ),
        (L1Exact(), {}, "sample s1: no count of response tokens"),
        (L1Max(), {}, "sample s1: no count of response tokens"),
        (L1Exact(), {"response_tokens": 3}, "sample s1: the prompt asks for no number of tokens.*data.prompt.target"),
        (L1Max(), {"response_tokens": 3}, "sample s1: the prompt asks for no number of tokens.*data.prompt.target"),
    ],
)
def test_what_is_missing_is_an_error_that_names_the_sample(
    rule: LengthScore, known: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rule(case(**known))


def test_what_is_not_needed_may_be_missing() -> None:
    assert NoLengthScore()(case()) == LengthResult(1.0, None, None)
    assert ReleasedBudget()(case(difficulty=1.0)).score == 1.0
    assert TokenBudget(uncertainty_tokens=0)(case(difficulty=1.0, reasoning_tokens=32)).score == 1.0


def test_l1_equals_the_released_scores() -> None:
    for row in golden_rows("l1_length.jsonl.gz"):
        function, component = (l1_exact, L1Exact) if row["mode"] == "exact" else (l1_max, L1Max)
        used, target, alpha, expected = row["used_tokens"], row["target_tokens"], row["alpha"], row["expected"]
        assert function(used, target, alpha) == expected["delta_score"], row["id"]
        for combination in ("additive", "multiplicative"):
            how = "additive" if component is L1Exact else "multiplicative"
            rule = component(target_tokens=target, alpha=alpha, **{how: combination == how})
            found = rule(case(response_tokens=used))
            assert found == LengthResult(expected["delta_score"], used, target, added=combination == "additive")
            assert rule.combine(row["correct"], found) == expected[combination], row["id"]


def test_l1_goes_by_what_the_prompt_asked_for() -> None:
    """As `get_delta_score_linear_both` of L1: the sign of a row's `num_tokens` chooses the rule of that row."""
    rule = L1Max(target_tokens=1, alpha=0.01)
    asked_at_most = rule(case(response_tokens=60, token_target=TokenTarget(100, at_most=True)))
    assert (asked_at_most.score, asked_at_most.budget, rule.combine(1, asked_at_most)) == (0.7, 100, 0.7)
    assert rule.combine(0, asked_at_most) == 0.0
    asked_exactly = rule(case(response_tokens=60, token_target=TokenTarget(100)))
    assert asked_exactly.score == pytest.approx(-0.4)
    assert rule.combine(1, asked_exactly) == pytest.approx(0.6)
    assert rule.combine(0, asked_exactly) == pytest.approx(-0.4)
    exact = L1Exact(target_tokens=1)(case(response_tokens=60, token_target=TokenTarget(160)))
    assert exact == LengthResult(pytest.approx(-0.03), 60, 160, added=True)


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.floats(0, 1))
def test_l1_bounds(used: int, target: int, alpha: float) -> None:
    assert l1_exact(used, target, alpha) <= 0.0
    assert 0.0 <= l1_max(used, target, alpha) <= 1.0
    assert l1_max(target, target, alpha) == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1Exact(alpha=-1.0), "L1Exact: alpha must be a finite number, not negative"),
        (lambda: L1Max(alpha=float("nan")), "L1Max: alpha must be a finite number"),
        (lambda: L1Max(target_tokens=-5), "L1Max: target_tokens must be at least 1"),
        (lambda: ReleasedBudget(easy_budget=-10.0), "ReleasedBudget: easy_budget must be a finite number"),
        (lambda: ReleasedBudget(hard_budget=float("nan")), "ReleasedBudget: hard_budget must be a finite number"),
        (lambda: ReleasedBudget(uncertainty_weight=-25.0), "ReleasedBudget: uncertainty_weight must be"),
        (lambda: L1Reward(length=L1Exact(additive=False)), "every reward is 0"),
    ],
)
def test_numbers_that_make_no_length_rule_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make()


def test_l1_exact_does_not_score_a_prompt_that_asks_for_at_most() -> None:
    asked = ScoringCase(
        "s1", "", parse_completion(""), (), response_tokens=50, token_target=TokenTarget(100, at_most=True)
    )
    with pytest.raises(
        UserError, match="sample s1: the prompt asks for at most 100 tokens, which L1Exact does not score"
    ):
        L1Exact()(asked)
    assert L1Max(alpha=0.01)(asked).score == pytest.approx((0.5 + 1) / 2)
