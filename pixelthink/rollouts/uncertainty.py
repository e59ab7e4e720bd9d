"""How unsure a policy was of its response, from the two most likely tokens at each step.

Per token, `clamp(1 − (p₁ − p₂), 0, 1)`; of a response, the mean over its tokens (PixelThink, released code). Where no
token has two candidates there is no uncertainty to speak of, and that is an error, never a silent 0. The released code
computes in single precision; `top2_uncertainty` computes in double, so that the two agree to about 1e-7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def top2_uncertainty(topk_logprobs: Sequence[Sequence[float]]) -> float:
    """Mean top-2 uncertainty of a response.

    Args:
        topk_logprobs: Log-probabilities of the most likely tokens, best first, one list per token of the response.
            Tokens with fewer than two are left out of the mean.

    Returns:
        In [0, 1]; 0 is sure.

    Raises:
        ValueError: if no token has two candidates, or a log-probability is NaN.
    """
    margins = [math.exp(token[0]) - math.exp(token[1]) for token in topk_logprobs if len(token) >= 2]
    if not margins:
        raise ValueError("no token has two log-probabilities, so there is no top-2 uncertainty")
    if any(math.isnan(margin) for margin in margins):
        raise ValueError("a log-probability is NaN")
    return sum(min(max(1.0 - margin, 0.0), 1.0) for margin in margins) / len(margins)


def top2_uncertainty_per_token(top2_logprobs: Tensor) -> Tensor:
    """Top-2 uncertainty of each token.

    Args:
        top2_logprobs: Float (…, 2), log-probabilities of the two most likely tokens, best first.

    Returns:
        Float (…), in [0, 1].

    Raises:
        ValueError: if the last dimension is not 2.
    """
    if top2_logprobs.ndim == 0 or top2_logprobs.shape[-1] != 2:
        raise ValueError(f"expected log-probabilities of shape (…, 2), got {tuple(top2_logprobs.shape)}")
    first, second = torch.exp(top2_logprobs).unbind(dim=-1)
    return (1 - (first - second)).clamp(0, 1)
