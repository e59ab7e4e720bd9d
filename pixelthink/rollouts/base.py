"""The rollout swap point: prompts in, sampled completions with log-probabilities and uncertainty out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixelthink.errors import UserError
from pixelthink.types import PromptBatch, RolloutBatch

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

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
        repetition_penalty: Logits of tokens that the prompt or the completion already has are divided by this where
            they are positive and multiplied where they are negative (CTRL, arXiv 1909.05858, as in transformers and
            vLLM). None leaves it to the protocol in evaluation; in training it means none.
        uncertainty_top_k: Candidates per token from which the uncertainty is computed; the released code asks for 5.
    """

    group_size: int = 8
    max_new_tokens: int = 1300
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float | None = None
    uncertainty_top_k: int = 5

    def __post_init__(self) -> None:
        if self.group_size < 1 or self.max_new_tokens < 1:
            raise UserError("sampling: group_size and max_new_tokens must be at least 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise UserError("sampling: temperature and top_k must not be negative, top_p must lie in (0, 1]")
        if self.temperature == 0 and self.group_size > 1:
            raise UserError("sampling: temperature 0 gives equal completions, so group_size must be 1")
        if self.repetition_penalty is not None and not self.repetition_penalty > 0:
            raise UserError(f"sampling: repetition_penalty must be positive, got {self.repetition_penalty}")
        if self.uncertainty_top_k < 2:
            raise UserError("sampling: uncertainty_top_k must be at least 2, the uncertainty is a top-2 margin")


@dataclass(frozen=True)
class SyncReport:
    """What handing weights to an engine took.

    Attributes:
        seconds: Wall-clock time, the gathering of the weights and the clearing of caches included.
        bytes: Size of what was handed over.
        tensors: Number of weights.
    """

    seconds: float
    bytes: int
    tensors: int


@dataclass(frozen=True)
class EngineScore:
    """What an engine makes of one completion that it is given.

    Attributes:
        prompt_token_ids: The prompt as the engine reads it, image placeholders expanded; compared with
            `EncodedPrompt.token_ids`, since a prompt with too few or too many of them is the commonest silent mistake.
        logprobs: Log-probability of each completion token at temperature 1, before any token is forbidden.
    """

    prompt_token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class RolloutEngine(ABC):
    """Samples completions with the policy's weights.

    An engine may hold weights of its own (`holds_weights`). It then starts with none that mean anything, and whoever
    uses it hands it the policy's by `sync` before each rollout that needs newer ones; `SyncedEngine` does, and
    proves by `score` that they arrived (`pixelthink.rollouts.parity`). An engine that samples with the policy
    module itself needs none of this.
    """

    @abstractmethod
    def setup(self, backbone: PolicyBackbone, model: nn.Module) -> None:
        """Starts the engine. `model` is the live policy; an engine with weights of its own gets them by `sync`."""

    @abstractmethod
    def generate(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> RolloutBatch:
        """Samples `sampling.group_size` completions per prompt; equal weights and seed give equal completions.

        What a completion meets by chance is a function of the seed, its prompt's place (`PromptBatch.places`) and its
        number in the group, whatever else the batch holds: so several processes sample what one would.

        An engine with weights of its own sets `RolloutBatch.policy_version` to the version it was last handed.
        """

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Stands around a series of `generate` calls between two updates of the weights.

        All processes enter and leave it together. Inside, each generates as often and as long as it has to, so an
        engine may wait for other processes on entering and leaving, but not in between. Nothing by default.
        """
        yield

    @property
    def sampler(self) -> RolloutEngine:
        """The engine that samples and holds the weights: itself, or the one it wraps, as `FixedBudget` does."""
        return self

    @property
    def holds_weights(self) -> bool:
        """Whether it samples with weights of its own, which have to be handed to it."""
        return False

    @property
    def samples_beside_training(self) -> bool:
        """Whether `generate` may run in a thread while the policy trains: the engine shares no memory with it."""
        return False

    @property
    def dtype(self) -> str:
        """Precision in which an engine with weights of its own computes: float32, bfloat16 or float16."""
        return "float32"

    @property
    def version(self) -> int | None:
        """Version of the weights that it holds; None before the first sync and after a deep sleep."""
        return None

    @property
    def serves_adapters(self) -> bool:
        """Whether it loads LoRA adapters separately; the base weights are sent only once then."""
        return False

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int, adapter: Path | None = None) -> SyncReport:
        """Replaces the weights and drops everything computed from the old ones: prefix, image and encoder caches.

        Args:
            weights: (name, whole tensor) of every weight, as `PolicyBackbone.sync_weights` yields them. All are
                consumed, in order, on every process: gathering sharded weights is a collective operation.
            version: Their version, the number of optimizer steps they have seen.
            adapter: Folder with the policy's adapter, for an engine that serves adapters. `weights` are then those
                below it, and none where the engine has them: while its `version` is not None.
        """
        raise NotImplementedError(f"{type(self).__name__} holds no weights of its own")

    def score(self, rollout: RolloutBatch) -> list[EngineScore]:
        """Scores completions with the engine's own weights, reading prompts and images as `generate` does."""
        raise NotImplementedError(f"{type(self).__name__} holds no weights of its own")

    def sleep(self) -> None:  # noqa: B027
        """Gives memory back until `wake`, where the engine is configured to; nothing by default."""

    def wake(self) -> None:  # noqa: B027
        """Ends a sleep; nothing by default. After a deep sleep `version` is None and a sync has to follow."""

    @property
    def asleep(self) -> bool:
        """Whether the engine sleeps and has to be woken before it can sample or take weights."""
        return False

    def close(self) -> None:  # noqa: B027
        """Ends what the engine started, processes and servers; nothing by default."""
