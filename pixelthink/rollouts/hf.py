"""Rollouts with the policy module itself, so that no weights have to be synced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pixelthink.errors import UserError
from pixelthink.parallel.sharding import unsharded
from pixelthink.rollouts.base import RolloutEngine, SamplingConfig
from pixelthink.rollouts.completions import make_completion
from pixelthink.rollouts.decode import Decoded, decode_groups
from pixelthink.timing import now
from pixelthink.types import Completion, PromptBatch, RolloutBatch, Timings

if TYPE_CHECKING:
    from pixelthink.policies.base import PolicyBackbone


class HFEngine(RolloutEngine):
    """Samples with the transformers module that is being trained.

    Each prompt and image is encoded once, its completions share its keys and values, and finished ones leave the batch.

    Args:
        batch_size: Completions decoded side by side, rounded to whole groups; 0 decodes all of a step. It changes
            memory and speed, not the random numbers of a completion.
    """

    def __init__(self, batch_size: int = 0) -> None:
        if batch_size < 0:
            raise UserError("rollout.batch_size must not be negative")
        self.batch_size = batch_size

    def setup(self, backbone: PolicyBackbone, model: nn.Module) -> None:
        self.backbone = backbone
        self.model = model

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Gathers the weights where they are sharded: processes decode different numbers of tokens."""
        with unsharded(self.model):
            yield

    @torch.no_grad()
    def generate(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> RolloutBatch:
        started = now()
        group = sampling.group_size
        per_call = max(1, self.batch_size // group) if self.batch_size else len(batch)
        uniform = random_numbers(batch.places, sampling, seed)
        encoded = self.backbone.encode(batch.prompts)
        encode_seconds = now() - started
        was_training = self.model.training
        self.model.eval()
        completions: list[Completion] = []
        for start in range(0, len(batch), per_call):
            end = start + per_call
            numbers = uniform[start * group : end * group]
            decoded = decode_groups(self.backbone, self.model, encoded[start:end], sampling, numbers)
            completions += self._completions(decoded, encode_seconds / len(uniform))
        self.model.train(was_training)
        return RolloutBatch(batch.prompts, tuple(completions), group, seconds=now() - started)

    def _completions(self, decoded: Decoded, encode_seconds: float) -> list[Completion]:
        """Makes the completions of one call; `encode_seconds` is the share of each in encoding the prompts."""
        columns = (decoded.token_ids, decoded.logprobs, decoded.top_logprobs, decoded.lengths, decoded.stopped)
        tokens = int(decoded.lengths.sum())
        completions = []
        for token_ids, logprobs, top, length, stopped in zip(*(column.tolist() for column in columns), strict=True):
            timings = Timings(
                preparation_ms=1000 * encode_seconds,
                prefill_ms=1000 * decoded.prefill_seconds / len(decoded.lengths),
                decoding_ms=1000 * decoded.decode_seconds * length / tokens,
            )
            ids, chosen, candidates = token_ids[:length], logprobs[:length], top[:length]
            completions.append(make_completion(self.backbone, ids, chosen, candidates, stopped, timings))
        return completions


def random_numbers(places: Sequence[int], sampling: SamplingConfig, seed: int) -> Tensor:
    """Returns the random number of each completion at each step, float32 (P × group size, max_new_tokens).

    Args:
        places: Place of each of P prompts in the step's batch over all processes; the numbers depend on it.
        sampling: See `SamplingConfig`.
        seed: Seed of the numbers of the whole step.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (max(places) + 1, sampling.group_size, sampling.max_new_tokens)
    return torch.rand(shape, generator=generator)[list(places)].flatten(0, 1)
