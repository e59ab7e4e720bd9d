"""Scored rollouts, and how they are split into minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from pixelthink.errors import UserError
from pixelthink.grpo.loss import GRPOConfig


class TokenPrompt(Protocol):
    """What is asked of a prompt here: its token ids, int64 (length,)."""

    @property
    def token_ids(self) -> Tensor: ...


PromptT = TypeVar("PromptT", bound=TokenPrompt)


@dataclass(frozen=True)
class Experience(Generic[PromptT]):
    """N completions with everything that the loss needs besides their log-probabilities under the policy.

    Attributes:
        prompts: The prompts, in whatever form the policy scores them.
        completions: Token ids, int64 (length,) each.
        prompt_index: Which prompt each completion follows.
        mask: True at completion tokens, (N, T).
        advantages: (N,).
        old_logprobs: Under the policy before the step, (N, T); None where one update makes them the current ones.
        ref_logprobs: Under the reference, (N, T); None without KL.
        rollout_logprobs: Under the engine that sampled, (N, T); None where nobody kept them.
    """

    prompts: Sequence[PromptT]
    completions: tuple[Tensor, ...]
    prompt_index: tuple[int, ...]
    mask: Tensor
    advantages: Tensor
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    rollout_logprobs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def token_count(self) -> Tensor:
        """Number of completion tokens, a scalar."""
        return self.mask.sum()

    def select(self, rows: Sequence[int]) -> Experience[PromptT]:
        """The same for some of the completions, padded no further than the longest of them."""
        index = torch.as_tensor(rows, device=self.mask.device)
        width = max(len(self.completions[row]) for row in rows)

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[index, :width]

        return Experience(
            self.prompts,
            tuple(self.completions[row] for row in rows),
            tuple(self.prompt_index[row] for row in rows),
            self.mask[index, :width],
            self.advantages[index],
            cut(self.old_logprobs),
            cut(self.ref_logprobs),
            cut(self.rollout_logprobs),
        )

    def masked_dummy(self) -> Experience[PromptT]:
        """Its shortest completion with an empty mask: a forward and backward that add nothing to loss and gradient."""
        shortest = min(range(len(self)), key=lambda row: len(self.completions[row]))
        chosen = self.select([shortest])
        return replace(chosen, mask=torch.zeros_like(chosen.mask))


def minibatches(experience: Experience[PromptT], config: GRPOConfig) -> Iterator[Experience[PromptT]]:
    """The pieces of a rollout that take one optimizer step each, whole prompts, in order, `config.epochs` times over.

    Raises:
        UserError: if there are fewer prompts than minibatches.
    """
    prompts = len(experience.prompts)
    if prompts < config.minibatches:
        raise UserError(f"grpo.minibatches is {config.minibatches} but a step has only {prompts} prompts")
    if config.minibatches == 1:
        for _ in range(config.epochs):
            yield experience
        return
    bounds = [prompts * i // config.minibatches for i in range(config.minibatches + 1)]
    for _ in range(config.epochs):
        for low, high in pairwise(bounds):
            yield experience.select([row for row, p in enumerate(experience.prompt_index) if low <= p < high])
