"""Log-probabilities of given tokens without keeping the whole vocabulary's in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def selected_logprobs(
    hidden: Tensor, head: nn.Module, token_ids: Tensor, *, with_entropy: bool = False, chunk_size: int = 2048
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each given token under `softmax(head(hidden))`, in chunks that backward recomputes.

    Args:
        hidden: Final hidden states of the positions that predict the tokens, (M, D).
        head: Maps (m, D) to logits (m, V).
        token_ids: The tokens, (M,).
        with_entropy: Also return each position's entropy in nats.
        chunk_size: Positions per chunk; at most `chunk_size` × V logits live at a time.

    Returns:
        Log-probabilities (M,) in float32 and entropies (M,) in float32 or None; both carry gradient.
    """

    def chunk(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states).float()
        normalizer = logits.logsumexp(dim=-1)
        chosen = logits.gather(-1, ids[:, None])[:, 0] - normalizer
        if not with_entropy:
            return chosen, chosen.new_zeros(0)
        probabilities = (logits - normalizer[:, None]).exp()
        return chosen, normalizer - (probabilities * logits).sum(dim=-1)

    pieces = []
    for states, ids in zip(hidden.split(chunk_size), token_ids.split(chunk_size), strict=True):
        if torch.is_grad_enabled() and hidden.shape[0] > chunk_size:
            pieces.append(checkpoint(chunk, states, ids, use_reentrant=False))
        else:
            pieces.append(chunk(states, ids))
    logprobs = torch.cat([p[0] for p in pieces]) if pieces else hidden.new_zeros(0, dtype=torch.float32)
    entropy = torch.cat([p[1] for p in pieces]) if with_entropy and pieces else None
    return logprobs, entropy
