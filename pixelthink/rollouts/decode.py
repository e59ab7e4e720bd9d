"""The decoding loop: one prefill of the prompts, then all their completions side by side until the last one ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pixelthink.rollouts.base import SamplingConfig
from pixelthink.rollouts.group_cache import IDLE, GroupCache
from pixelthink.rollouts.sampling import RepetitionPenalty, draw
from pixelthink.timing import now

if TYPE_CHECKING:
    from pixelthink.policies.base import EncodedPrompt, PolicyBackbone

COMPACT_BELOW = 0.75
"""Finished completions are dropped when that leaves at most this share of the batch."""
RESERVE_STEPS = 64
"""Steps that the cache allocates at a time."""


@dataclass(frozen=True)
class Decoded:
    """N completions of at most T tokens.

    Attributes:
        token_ids: int64 (N, T); entries after the end of a completion have no meaning, here and below.
        logprobs: Log-probabilities at temperature 1 before any token was forbidden, float32 (N, T).
        top_logprobs: Those of the most likely tokens at each step, best first, float32 (N, T, k).
        lengths: Tokens of each completion, the stop token included, int64 (N,).
        stopped: Whether a stop token ended it, bool (N,).
        prefill_seconds: Wall-clock time of the prefill.
        decode_seconds: Wall-clock time from there until the last completion ended.
    """

    token_ids: Tensor
    logprobs: Tensor
    top_logprobs: Tensor
    lengths: Tensor
    stopped: Tensor
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    def record(self, members: Tensor, step: int, logits: Tensor, tokens: Tensor) -> None:
        """Stores the tokens (M,) of the completions `members` (M,) at a step, with the model's logits (M, V)."""
        logprobs = logits.log_softmax(dim=1)
        self.token_ids[members, step] = tokens
        self.logprobs[members, step] = logprobs.gather(1, tokens[:, None])[:, 0]
        self.top_logprobs[members, step] = logprobs.topk(self.top_logprobs.shape[2], dim=1).values
        self.lengths[members] = step + 1


@dataclass
class _Batch:
    """P rows of the cache with Q places each.

    Attributes:
        rows: Index of each row's prompt, (P,).
        slots: Number in its group of the completion in each place, or IDLE, (P, Q).
        tokens: The newest token in each place, (P, Q).
        start: Rotary position of each prompt's first completion token, (P,).
    """

    rows: Tensor
    slots: Tensor
    tokens: Tensor
    start: Tensor

    def compact(self, cache: GroupCache) -> None:
        """Drops finished completions from rows and places where that saves enough."""
        alive = (self.slots != IDLE).sum(dim=1)
        kept = alive.nonzero()[:, 0]
        width = int(alive.max())
        if len(kept) * width > COMPACT_BELOW * self.slots.numel():
            return
        order = (self.slots[kept] == IDLE).int().argsort(dim=1, stable=True)[:, :width]
        self.slots = self.slots[kept].gather(1, order)
        self.tokens = self.tokens[kept].gather(1, order)
        self.rows, self.start = self.rows[kept], self.start[kept]
        cache.keep(kept, self.slots)


def decode_groups(
    backbone: PolicyBackbone,
    model: nn.Module,
    prompts: Sequence[EncodedPrompt],
    sampling: SamplingConfig,
    uniform: Tensor,
) -> Decoded:
    """Samples `sampling.group_size` completions of each prompt.

    Args:
        backbone: Knows the model.
        model: In evaluation mode; call without gradients.
        prompts: P prompts.
        sampling: See `SamplingConfig`.
        uniform: The random number of each completion at each step, float32 (P × group size, max_new_tokens). So a
            completion does not depend on those that are decoded beside it.

    Returns:
        P × group size completions, group-major.
    """
    device = next(model.parameters()).device
    group, steps = sampling.group_size, sampling.max_new_tokens
    forbidden = torch.tensor(backbone.forbidden_token_ids, dtype=torch.int64, device=device)
    stops = torch.tensor(backbone.stop_token_ids, dtype=torch.int64, device=device)
    uniform = uniform.to(device)
    started = now(device)
    cache = GroupCache(reserve=group * min(steps, RESERVE_STEPS))
    prefill = backbone.prefill(model, prompts, cache)
    prefilled = now(device)
    cache.open_prompts(prefill.lengths)
    count = len(prompts) * group
    result = Decoded(
        token_ids=torch.zeros(count, steps, dtype=torch.int64, device=device),
        logprobs=torch.zeros(count, steps, device=device),
        top_logprobs=torch.zeros(count, steps, sampling.uncertainty_top_k, device=device),
        lengths=torch.zeros(count, dtype=torch.int64, device=device),
        stopped=torch.zeros(count, dtype=torch.bool, device=device),
    )
    slots = torch.arange(group, device=device).repeat(len(prompts), 1)
    batch = _Batch(torch.arange(len(prompts), device=device), slots, torch.zeros_like(slots), prefill.positions)
    logits = prefill.logits[:, None].expand(-1, group, -1)
    repetition = RepetitionPenalty([p.token_ids for p in prompts], sampling, logits.shape[-1], device)
    for step in range(steps):
        live = batch.slots != IDLE
        members = (batch.rows[:, None] * group + batch.slots)[live]
        distribution = logits[live]
        tokens = draw(repetition.scores(members, distribution), forbidden, sampling, uniform[members, step])
        repetition.add(members, tokens)
        result.record(members, step, distribution, tokens)
        stopped = torch.isin(tokens, stops)
        result.stopped[members] = stopped
        batch.tokens[live] = tokens
        batch.slots[live] = batch.slots[live].masked_fill(stopped, IDLE)
        if step + 1 == steps or bool(stopped.all()):
            break
        batch.compact(cache)
        cache.open(batch.slots)
        positions = (batch.start[:, None] + step).expand_as(batch.slots)
        logits = backbone.decode(model, batch.tokens, positions, cache, cache.visible(batch.slots))
    return replace(result, prefill_seconds=prefilled - started, decode_seconds=now(device) - prefilled)
