"""Group-relative advantages."""

from __future__ import annotations

from torch import Tensor


def group_advantages(scores: Tensor, group_size: int, scale_by_std: bool = True, eps: float = 1e-6) -> Tensor:
    """How much better than its group each completion did.

    GRPO as PixelThink releases it (songw-zju/PixelThink, `verl/trainer/core_algos.py`): `(r − group mean) /
    (group std + 1e-6)` with the unbiased std.

    Args:
        scores: Rewards, (N,), group-major: the first `group_size` belong to one prompt.
        group_size: Completions per prompt.
        scale_by_std: Divide by the group's std; without it (Dr. GRPO, arXiv 2503.20783) only the mean is taken off.
        eps: Added to the std.

    Returns:
        Advantages, (N,). A group of one has no peers, so its advantage is 0; so are those of equal scores, exactly.

    Raises:
        ValueError: if the scores do not divide into groups or are not finite.
    """
    if scores.ndim != 1 or group_size < 1 or scores.numel() % group_size:
        raise ValueError(f"group_advantages: scores of shape {tuple(scores.shape)} do not form groups of {group_size}")
    if not bool(scores.isfinite().all()):
        raise ValueError("group_advantages: a score is not finite")
    groups = scores.view(-1, group_size)
    flat = groups.amax(dim=1, keepdim=True) == groups.amin(dim=1, keepdim=True)
    centred = (groups - groups.mean(dim=1, keepdim=True)).masked_fill(flat, 0.0)  # else the mean's rounding over 1e-6
    if scale_by_std and group_size > 1:
        centred = centred / (groups.std(dim=1, keepdim=True) + eps)
    return centred.reshape(-1)


def flat_group_share(scores: Tensor, group_size: int) -> float:
    """Share of groups whose scores are all equal; they teach nothing. `scores` is (N,), group-major."""
    groups = scores.view(-1, group_size)
    return float((groups.amax(dim=1) == groups.amin(dim=1)).float().mean())
