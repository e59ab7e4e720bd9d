"""The reward swap points: a whole reward, one of its terms, and the length score.

A component is a public subclass; `pixelthink.cli.registry` and jsonargparse find it by its class name. A constructor
that takes other components types them with these base classes and gives `jsonargparse.lazy_instance(Component)` as the
default: then `--print_config` prints the default's own options, and `--model.reward.iou.threshold=0.7` changes one of
them and keeps the rest. It passes what it got through `pixelthink.components.resolved`, because a lazy instance is only
half an object.

Where one component replaces another, jsonargparse keeps the values of parameters that both have, *defaults included*.
So components of one kind give equal names only to parameters with equal defaults; a test holds the length scores to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pixelthink.parsing import parse_completion
from pixelthink.segmenters.base import Segmenter
from pixelthink.types import RewardOutput, RolloutBatch, Score, ScoringCase


class RewardTerm(ABC):
    """One part of the accuracy, a number from 0 to 1."""

    @property
    def name(self) -> str:
        """Name of the part in logs where the reward gives it none of its own: the class name."""
        return type(self).__name__

    def setup(self, device: str, segmenter: Segmenter) -> None:  # noqa: B027
        """Loads weights, before training; most terms have none.

        Args:
            device: Where weights go.
            segmenter: The run's own, set up already: a term that needs masks may share it and its cache.
        """

    @abstractmethod
    def __call__(self, case: ScoringCase) -> float:
        """The term's value for one response."""

    def values(self, cases: Sequence[ScoringCase]) -> list[float]:
        """The term's values for a step's responses; a term that is cheaper for many at once overrides this."""
        return [self(case) for case in cases]


@dataclass(frozen=True)
class LengthResult:
    """What a length rule says of one response.

    Attributes:
        score: Factor for the accuracy, in [0, 1] for most rules; see `LengthScore.combine`.
        used: Words or tokens that the rule counted; None where it does not look at length.
        budget: Words or tokens that the response may use; None where it has no budget.
        added: Whether the score is to be added to the accuracy; else it is a factor of it.
    """

    score: float
    used: int | None = None
    budget: float | None = None
    added: bool = False


class LengthScore(ABC):
    """How much of the accuracy a response keeps for its length."""

    @abstractmethod
    def __call__(self, case: ScoringCase) -> LengthResult:
        """The rule's result for one response.

        Raises:
            UserError: the rule needs a difficulty, an uncertainty or a token count that the case lacks; names the
                sample.
        """

    def combine(self, accuracy: float, length: LengthResult) -> float:
        """The reward from the accuracy and the length score: their product (PixelThink, released reward) or sum."""
        return accuracy + length.score if length.added else length.score * accuracy


class Reward(ABC):
    """Scores responses; a rollout is scored by scoring all its completions."""

    answer_style: str = "single"
    """Style the responses are parsed in, see `pixelthink.parsing.parse_completion`."""

    def setup(self, device: str, segmenter: Segmenter) -> None:  # noqa: B027
        """Sets up the parts that need it, see `RewardTerm.setup`."""

    @abstractmethod
    def score(self, case: ScoringCase) -> Score:
        """Score of one response."""

    def score_all(self, cases: Sequence[ScoringCase]) -> list[Score]:
        """Scores of a step's responses; a reward with parts that are cheaper for many at once overrides this."""
        return [self.score(case) for case in cases]

    def __call__(self, rollout: RolloutBatch) -> RewardOutput:
        """Scores of a rollout, group-major."""
        scores = self.score_all([self._case(rollout, index) for index in range(len(rollout.completions))])
        return RewardOutput(torch.tensor([s.reward for s in scores], dtype=torch.float32), tuple(scores))

    def _case(self, rollout: RolloutBatch, index: int) -> ScoringCase:
        """Everything that the reward may look at of completion `index`."""
        prompt, completion = rollout.prompt_of(index), rollout.completions[index]
        return ScoringCase(
            id=prompt.sample.id,
            text=completion.text,
            answer=parse_completion(completion.text, self.answer_style),
            targets=prompt.targets,
            difficulty=prompt.sample.difficulty,
            uncertainty=completion.uncertainty,
            reasoning_tokens=completion.reasoning_tokens,
            prompt=prompt,
            response_tokens=len(completion.token_ids),
            token_target=prompt.token_target,
        )
