"""One token from each distribution, the random numbers given from outside."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelthink.rollouts.base import SamplingConfig


def draw(logits: Tensor, forbidden: Tensor, sampling: SamplingConfig, uniform: Tensor) -> Tensor:
    """Draws a token from each row.

    Temperature, top-k and top-p apply in this order, as in transformers.

    Args:
        logits: Float (M, V).
        forbidden: Tokens that may not be drawn, int64 (F,).
        sampling: See `SamplingConfig`.
        uniform: One number in [0, 1) a row, float32 (M,); not looked at with temperature 0.

    Returns:
        int64 (M,).
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
    """Scores (M, V) with −∞ at all but the most likely tokens that together reach `top_p`."""
    ordered, order = scores.sort(dim=1, descending=True)
    probabilities = ordered.softmax(dim=1)
    beyond = probabilities.cumsum(dim=1) - probabilities >= top_p
    beyond[:, 0] = False
    return scores.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
