"""Log-probabilities of given tokens without the whole vocabulary's in memory.

The head's product and its log-sum-exp run over blocks of the vocabulary, in the head's own precision with float32
reductions, and again in backward, so that never more than one block of logits lives. Going by vocabulary and not by
token, backward writes each row of the head's gradient once, from all tokens: no sum over chunks loses precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear

BLOCK_LOGITS = 2**23
"""Logits that live at a time: 32 MiB in float32. Fewer than these in all are kept for backward, not computed twice."""


def selected_logprobs(
    hidden: Tensor,
    head: nn.Module,
    token_ids: Tensor,
    *,
    with_entropy: bool = False,
    block_logits: int = BLOCK_LOGITS,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each given token under `softmax(head(hidden))`.

    Args:
        hidden: Final hidden states of the positions that predict the tokens, (M, D).
        head: Maps (m, D) to logits (m, V). A plain linear layer is computed in blocks of the vocabulary; any other
            module (adapters, quantised, sharded) is called as it is, with all its logits in memory.
        token_ids: The tokens, (M,).
        with_entropy: Also return each position's entropy in nats.
        block_logits: Logits that live at a time, about.

    Returns:
        Log-probabilities (M,) in float32 and entropies (M,) in float32 or None.
    """
    plain = type(head) is nn.Linear and head.bias is None and not isinstance(head.weight, DTensor)
    if not plain:
        logits = head(hidden).float()
        normalizer = logits.logsumexp(dim=-1)
        logprobs = logits.gather(-1, token_ids[:, None])[:, 0] - normalizer
        if not with_entropy:
            return logprobs, None
        return logprobs, normalizer - ((logits - normalizer[:, None]).exp() * logits).sum(dim=-1)
    weight: Tensor = head.weight  # type: ignore[assignment]
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    elif hidden.dtype != weight.dtype:
        hidden = hidden.to(weight.dtype)
    logprobs, entropy = _HeadLogprobs.apply(hidden, weight, token_ids, with_entropy, block_logits)
    return logprobs, entropy if with_entropy else None


class _HeadLogprobs(torch.autograd.Function):
    """(hidden (M, D), weight (V, D), token_ids (M,)) → log-probabilities (M,) and entropies (M,), both float32."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, token_ids: Tensor, with_entropy: bool, block_logits: int
    ) -> tuple[Tensor, Tensor]:
        rows, vocabulary = len(hidden), len(weight)
        block = min(vocabulary, max(256, block_logits // max(rows, 1)))
        peak = hidden.new_full((rows,), -torch.inf, dtype=_wide(hidden))
        total, moment, chosen = torch.zeros_like(peak), torch.zeros_like(peak), torch.zeros_like(peak)
        kept = None
        for start in range(0, vocabulary, block):
            logits = _logits(hidden, weight[start : start + block])
            if block == vocabulary:
                kept = logits
            inside, ids = _local(token_ids - start, logits.shape[1])
            chosen = torch.where(inside, logits.gather(1, ids)[:, 0], chosen)
            higher = torch.maximum(peak, logits.amax(dim=1))
            shift, rescale = peak - higher, (peak - higher).exp()
            if with_entropy:  # moment: sum of e^(z − peak) · (z − peak)
                moment = torch.where(total > 0, (moment + total * shift) * rescale, 0.0)
            shifted = logits - higher[:, None]
            weights = shifted.exp()
            total = total * rescale + weights.sum(dim=1)
            if with_entropy:
                moment += shifted.mul_(weights).sum(dim=1)
            peak = higher
        normalizer = peak + total.log()
        entropy = total.log() - moment / total if with_entropy else torch.zeros_like(peak)
        ctx.save_for_backward(hidden, weight, token_ids, normalizer, entropy, kept)
        ctx.block, ctx.with_entropy = block, with_entropy
        ctx.set_materialize_grads(False)
        return chosen - normalizer, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_logprobs: Tensor | None, to_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, token_ids, normalizer, entropy, kept = ctx.saved_tensors
        if to_logprobs is None:
            to_logprobs = torch.zeros_like(normalizer)
        to_entropy = to_entropy if ctx.with_entropy else None
        wanted_hidden, wanted_weight = ctx.needs_input_grad[:2]
        to_hidden = torch.zeros_like(hidden, dtype=_wide(hidden)) if wanted_hidden else None
        to_weight = torch.empty_like(weight) if wanted_weight else None
        for start in range(0, len(weight), ctx.block):
            part = weight[start : start + ctx.block]
            logits = _logits(hidden, part) if kept is None else kept
            to_logits = _logit_gradient(logits - normalizer[:, None], entropy, to_logprobs, to_entropy)
            inside, ids = _local(token_ids - start, to_logits.shape[1])
            to_logits.scatter_add_(1, ids, torch.where(inside, to_logprobs, 0.0)[:, None])
            to_logits = to_logits.to(weight.dtype)
            if to_hidden is not None:
                to_hidden += to_logits @ part
            if to_weight is not None:
                torch.matmul(to_logits.T, hidden, out=to_weight[start : start + ctx.block])
        return None if to_hidden is None else to_hidden.to(hidden.dtype), to_weight, None, None, None


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Float32 logits of a block, (M, v), multiplied in the weights' precision."""
    with torch.autocast(hidden.device.type, enabled=False):
        return linear(hidden, weight).to(_wide(hidden))


def _wide(values: Tensor) -> torch.dtype:
    """Precision of reductions: float32, or float64 for values that have it."""
    return torch.promote_types(values.dtype, torch.float32)


def _local(ids: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Which tokens lie in a block of this size, bool (M,), and their ids in it, (M, 1); those of others are clamped."""
    return (ids >= 0) & (ids < size), ids.clamp(0, size - 1)[:, None]


def _logit_gradient(log_softmax: Tensor, entropy: Tensor, to_logprobs: Tensor, to_entropy: Tensor | None) -> Tensor:
    """Gradient at a block of logits but for the chosen tokens' own: `−p · (g + e · (log p + H))`, (M, v).

    Since d log p_i / d z_j = [i = j] − p_j, and d H / d z_j = −p_j · (log p_j + H).
    """
    if to_entropy is None:
        return log_softmax.exp_().mul_(-to_logprobs[:, None])
    factor = (log_softmax + entropy[:, None]).mul_(to_entropy[:, None]).add_(to_logprobs[:, None])
    return factor.mul_(log_softmax.exp_()).neg_()
