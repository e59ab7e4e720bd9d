"""Samples one token from each distribution, with given random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import device as Device

from pixelthink.rollouts.base import SamplingConfig


class RepetitionPenalty:
    """Makes tokens less likely that the prompt or the completion has, see `SamplingConfig.repetition_penalty`.

    Args:
        prompts: Token ids of P prompts, int64 (L,) each.
        sampling: Has penalty and group size.
        vocabulary: Number of tokens V.
        device: Of the logits.
    """

    def __init__(self, prompts: Sequence[Tensor], sampling: SamplingConfig, vocabulary: int, device: Device) -> None:
        self.penalty = sampling.repetition_penalty or 1.0
        self.seen: Tensor | None = None  # bool (P × group size, V)
        if self.penalty != 1.0:
            seen = torch.zeros(len(prompts), vocabulary, dtype=torch.bool, device=device)
            for row, token_ids in zip(seen, prompts, strict=True):
                row[token_ids.to(device)] = True
            self.seen = seen.repeat_interleave(sampling.group_size, dim=0)

    def scores(self, members: Tensor, logits: Tensor) -> Tensor:
        """Logits (M, V) of the completions `members` (M,) under the penalty."""
        if self.seen is None:
            return logits
        return torch.where(
            self.seen[members], torch.where(logits > 0, logits / self.penalty, logits * self.penalty), logits
        )

    def add(self, members: Tensor, tokens: Tensor) -> None:
        """The completions `members` (M,) have got the tokens (M,)."""
        if self.seen is not None:
            self.seen[members, tokens] = True


def draw(logits: Tensor, forbidden: Tensor, sampling: SamplingConfig, uniform: Tensor) -> Tensor:
    """Samples a token from each row. Temperature, top-k and top-p apply in this order, as in transformers.

    Args:
        logits: Float (M, V).
        forbidden: Tokens that may not be sampled, int64 (F,).
        sampling: See `SamplingConfig`.
        uniform: A random number in [0, 1) per row, float32 (M,); unused with temperature 0.

    Returns:
        Token ids, int64 (M,).
    """
    scores = logits.index_fill(1, forbidden, -torch.inf)
    if sampling.temperature == 0:
        return scores.argmax(dim=1)
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < scores.shape[1]:
        least = scores.topk(sampling.top_k, dim=1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if sampling.top_p < 1:
        scores = _nucleus(scores, sampling.top_p)
    cumulated = scores.softmax(dim=1).cumsum(dim=1, dtype=torch.float64)
    point = uniform.to(cumulated)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, point, right=True)[:, 0]


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Sets all but the most likely tokens that together reach `top_p` to −∞ in scores (M, V)."""
    ordered, order = scores.sort(dim=1, descending=True)
    probabilities = ordered.softmax(dim=1)
    beyond = probabilities.cumsum(dim=1) - probabilities >= top_p
    beyond[:, 0] = False
    return scores.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
