"""How unsure a policy was of its response, from the two most likely tokens at each step (PixelThink, released code)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def top2_uncertainty(topk_logprobs: Sequence[Sequence[float]]) -> float:
    """Returns the mean over tokens of `clamp(1 − (p₁ − p₂), 0, 1)`, the top-2 uncertainty of a response.

    The released code computes in single precision and this one in double, so that the two agree to about 1e-7.

    Args:
        topk_logprobs: Log-probabilities of the most likely tokens, best first, one list per token of the response.
            Tokens with fewer than two are left out of the mean.

    Returns:
        In [0, 1]; 0 is sure.

    Raises:
        ValueError: no token has two log-probabilities, or one is NaN.
    """
    margins = [math.exp(token[0]) - math.exp(token[1]) for token in topk_logprobs if len(token) >= 2]
    if not margins:
        raise ValueError("no token has two log-probabilities, so there is no top-2 uncertainty")
    if any(math.isnan(margin) for margin in margins):
        raise ValueError("a log-probability is NaN")
    return sum(min(max(1.0 - margin, 0.0), 1.0) for margin in margins) / len(margins)
