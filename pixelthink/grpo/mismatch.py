"""How far a rollout engine's distribution is from the policy's, and weights that correct for it.

Two programs that compute the same model differ by rounding, an engine with older weights by more. The policy gradient
then averages over another distribution than it claims (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings
You Off-Policy RL Training"). Importance weights policy/rollout mend that; cut off at a cap they keep the variance down
(truncated, TIS, there) or drop what lies beyond (masked, MIS). The ratio is of both programs' log-probabilities at
temperature 1 before any token is forbidden, which is what `Completion.logprobs` holds.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RolloutCorrection = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]

NEAR = (0.9, 1.1)
"""Ratios that count as close."""


def rollout_weights(log_ratio: Tensor, mask: Tensor, correction: RolloutCorrection, cap: float) -> Tensor:
    """Weight of each token's policy gradient.

    Args:
        log_ratio: log(policy / rollout) of each token, (N, T).
        mask: True at completion tokens, bool (N, T).
        correction: Per token, or per sequence: the product of its tokens' ratios; `truncate` cuts ratios down to the
            cap, `mask` gives those beyond it the weight 0; `none` weighs all alike.
        cap: Largest ratio.

    Returns:
        (N, T), without gradient; what stands at padding means nothing.
    """
    log_ratio = torch.where(mask, log_ratio.detach(), 0.0)
    if correction == "none":
        return torch.ones_like(log_ratio)
    if correction.startswith("sequence"):
        log_ratio = log_ratio.sum(dim=1, keepdim=True).expand_as(log_ratio)
    ratio = log_ratio.exp()
    return ratio.clamp(max=cap) if correction.endswith("truncate") else ratio.masked_fill(ratio > cap, 0.0)


def mismatch_sums(log_ratio: Tensor) -> Tensor:
    """What `mismatch_stats` needs of M tokens, float64 (5,): these add up over micro-batches and processes.

    Args:
        log_ratio: log(policy / rollout), (M,).
    """
    log_ratio = log_ratio.double()
    ratio = log_ratio.exp()
    outside = (ratio < NEAR[0]) | (ratio > NEAR[1])
    return torch.stack(
        [torch.ones_like(ratio).sum(), log_ratio.sum(), outside.double().sum(), ratio.sum(), ratio.square().sum()]
    )


def mismatch_stats(sums: Tensor) -> dict[str, float]:
    """Numbers for curves from the sums of `mismatch_sums`.

    Returns:
        `log_ratio_mean`, whose negative estimates KL(rollout ‖ policy); `outside`, the share of ratios outside
        [0.9, 1.1]; `effective_sample_size`, Kish's (Σw)² / (M Σw²) as a share of the M tokens, 1 where all are equal.
    """
    count, total, outside, weight, square = sums.tolist()
    return {
        "log_ratio_mean": total / count,
        "outside": outside / count,
        "effective_sample_size": weight**2 / (count * square),
    }
