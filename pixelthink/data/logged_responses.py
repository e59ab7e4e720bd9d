"""Responses that somebody logged, scored again under any reward."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from typing import Any

from pixelthink.data.solution import parse_objects_solution, parse_solution
from pixelthink.errors import UserError
from pixelthink.geometry import Target
from pixelthink.parsing import parse_completion
from pixelthink.rewards.base import Reward
from pixelthink.rewards.length import known_length_mode
from pixelthink.types import Score, ScoringCase, TokenTarget


class LoggedResponses:
    """Scores rows with `id`, `response`, `solution` and what else the reward asks for.

    That may be `difficulty` (1 to 10), `uncertainty` (0 to 1), `reasoning_token_count`, `response_token_count` and
    `token_target`, the tokens that the prompt asked for, negative where it asked for at most so many (as L1 writes it).
    A row's `length_mode` (`response_words` or `reasoning_tokens`) overrides the reward's own. Other keys are ignored.

    Args:
        reward: How responses are scored.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self._by_mode: dict[str, Reward] = {}

    def score(self, row: Mapping[str, Any]) -> Score:
        """Score of one row.

        Raises:
            UserError: a field is missing or of the wrong kind; says which.
        """
        reward, mode = self.reward, row.get("length_mode")
        if mode is not None and not isinstance(mode, str):
            raise UserError(f"length_mode must be a text, got {mode!r}")
        if mode is not None:
            reward = self._by_mode.setdefault(mode, _with_length_mode(self.reward, mode))
        return reward.score(scoring_case(row, reward.answer_style))


def _with_length_mode(reward: Reward, mode: str) -> Reward:
    """The same reward, its length counted in another way; one that can count in one way only stays as it is."""
    known = known_length_mode(mode)
    if not hasattr(getattr(reward, "length", None), "length_mode"):
        return reward
    other = copy.deepcopy(reward)
    other.length.length_mode = known  # type: ignore[attr-defined]
    return other


def scoring_case(row: Mapping[str, Any], style: str) -> ScoringCase:
    """What a reward may look at, from one row.

    Raises:
        UserError: a field is missing or of the wrong kind; says which.
    """
    for key in ("id", "response", "solution"):
        if row.get(key) is None:
            raise UserError(f"no {key!r}")
    response = row["response"]
    if not isinstance(response, str):
        raise UserError(f"response must be a text, got {type(response).__name__}")
    target = whole_number_of(row, "token_target")
    return ScoringCase(
        id=str(row["id"]),
        text=response,
        answer=parse_completion(response, style),
        targets=targets_of(row["solution"], style),
        difficulty=number_of(row, "difficulty"),
        uncertainty=number_of(row, "uncertainty"),
        reasoning_tokens=whole_number_of(row, "reasoning_token_count"),
        response_tokens=whole_number_of(row, "response_token_count"),
        token_target=None if target is None else TokenTarget(abs(target), at_most=target < 0),
    )


def targets_of(solution: object, style: str) -> tuple[Target, ...]:
    """The truth, written as the answer style's training rows write it."""
    if style == "visionreasoner":
        return parse_objects_solution(solution if isinstance(solution, str) else json.dumps(solution))
    if not isinstance(solution, str):
        raise UserError(f"solution must be a text, got {type(solution).__name__}")
    return (parse_solution(solution),)


def number_of(row: Mapping[str, Any], key: str) -> float | None:
    """A finite number of the row; None where it is absent or null."""
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{key} must be a number, got {value!r}")
    if not abs(value) < math.inf:
        raise UserError(f"{key} must be finite, got {value}")
    return value


def whole_number_of(row: Mapping[str, Any], key: str) -> int | None:
    """A whole number of the row; None where it is absent or null."""
    value = number_of(row, key)
    if value is None:
        return None
    if value != int(value):
        raise UserError(f"{key} must be a whole number, got {value}")
    return int(value)


def scored_row(row: Mapping[str, Any], score: Score) -> dict[str, Any]:
    """The row to write."""
    return {
        "id": row["id"],
        "parts": dict(score.parts),
        "length_used": score.length_used,
        "length_budget": score.length_budget,
        "length_score": score.length_score,
        "reward": score.reward,
    }
