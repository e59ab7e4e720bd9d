"""The reward swap points: a whole reward, one of its terms, and the length score.

A component is a public subclass; `pixelthink.registry` and jsonargparse find it by its class name. A constructor that
takes other components types them with these base classes and gives `jsonargparse.lazy_instance(Component)` as the
default: then `--print_config` prints the default's own options, and `--model.reward.iou.threshold=0.7` changes one of
them and keeps the rest. It passes what it got through `pixelthink.components.resolved`, because a lazy instance is only
half an object.

Where one component replaces another, jsonargparse keeps the values of parameters that both have, *defaults included*.
So components of one kind give equal names only to parameters with equal defaults; a test holds the length scores to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch

from pixelthink.parsing import parse_completion
from pixelthink.types import RewardOutput, RolloutBatch, Score, ScoringCase

LengthMode = Literal["response_words", "reasoning_tokens"]
"""What a length rule counts: white-space separated words of the whole response, or tokens inside `<think>`."""

LENGTH_MODES: tuple[LengthMode, ...] = get_args(LengthMode)


class RewardTerm(ABC):
    """One part of the accuracy, a number from 0 to 1."""

    @property
    def name(self) -> str:
        """Name of the part in logs where the reward gives it none of its own: the class name."""
        return type(self).__name__

    @abstractmethod
    def __call__(self, case: ScoringCase) -> float:
        """The term's value for one response."""


class LengthScore(ABC):
    """How much of the accuracy a response keeps for its length."""

    @abstractmethod
    def __call__(self, case: ScoringCase) -> tuple[int | None, float | None, float]:
        """`(length_used, length_budget, length_score)`.

        `length_used` is None where the rule does not look at length, the budget None where the response has none.

        Raises:
            ValueError: if the rule needs a difficulty, an uncertainty or a token count that the case lacks; names the
                sample.
        """

    def combine(self, accuracy: float, length_score: float) -> float:
        """The reward from the sum of the terms and the length score: their product (PixelThink, released reward)."""
        return length_score * accuracy

    def with_length_mode(self, mode: LengthMode) -> LengthScore:
        """The same rule, counting in another way; a rule that knows one way only stays as it is."""
        return self


class Reward(ABC):
    """Scores responses one at a time; a rollout is scored by mapping over its completions."""

    answer_style: str = "single"
    """Style the responses are parsed in, see `pixelthink.parsing.parse_completion`."""

    @abstractmethod
    def score(self, case: ScoringCase) -> Score:
        """Score of one response."""

    def with_length_mode(self, mode: LengthMode) -> Reward:
        """The same reward, counting length in another way; one that does not look at length stays as it is."""
        return self

    def __call__(self, rollout: RolloutBatch) -> RewardOutput:
        """Scores of a rollout, group-major."""
        scores = []
        for index, completion in enumerate(rollout.completions):
            prompt = rollout.prompt_of(index)
            scores.append(
                self.score(
                    ScoringCase(
                        id=prompt.sample.id,
                        text=completion.text,
                        answer=parse_completion(completion.text, self.answer_style),
                        targets=prompt.targets,
                        difficulty=prompt.sample.difficulty,
                        uncertainty=completion.uncertainty,
                        reasoning_tokens=completion.reasoning_tokens,
                    )
                )
            )
        return RewardOutput(torch.tensor([s.reward for s in scores], dtype=torch.float32), tuple(scores))
