"""The rollout swap point: prompts in, sampled completions with log-probabilities and uncertainty out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixelthink.types import PromptBatch, RolloutBatch

if TYPE_CHECKING:
    from torch import nn

    from pixelthink.policies.base import PolicyBackbone


@dataclass(frozen=True)
class SamplingConfig:
    """How completions are sampled.

    Attributes:
        group_size: Completions per prompt.
        max_new_tokens: Limit of a completion's length in tokens.
        temperature: Softmax temperature; 0 takes the most likely token.
        top_p: Nucleus: tokens beyond this cumulative probability are not sampled; 1 keeps all.
        top_k: Only the k most likely tokens are sampled; 0 keeps all.
        uncertainty_top_k: Candidates per token from which the uncertainty is computed; the released code asks for 5.
    """

    group_size: int = 8
    max_new_tokens: int = 1300
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    uncertainty_top_k: int = 5

    def __post_init__(self) -> None:
        if self.group_size < 1 or self.max_new_tokens < 1:
            raise ValueError("sampling: group_size and max_new_tokens must be at least 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError("sampling: temperature and top_k must not be negative, top_p must lie in (0, 1]")
        if self.temperature == 0 and self.group_size > 1:
            raise ValueError("sampling: temperature 0 gives equal completions, so group_size must be 1")
        if self.uncertainty_top_k < 2:
            raise ValueError("sampling: uncertainty_top_k must be at least 2, the uncertainty is a top-2 margin")


class RolloutEngine(ABC):
    """Samples completions with the policy's weights."""

    @abstractmethod
    def setup(self, backbone: PolicyBackbone, model: nn.Module) -> None:
        """Starts the engine. `model` is the live policy; an engine with weights of its own copies them from it."""

    @abstractmethod
    def generate(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> RolloutBatch:
        """Samples `sampling.group_size` completions per prompt; equal weights and seed give equal completions."""
