"""The attention kernel of packed groups, on torch's scaled-dot-product attention.

`use_segments(model)` makes it the kernel of a model's language part under transformers' attention interface. Calls that
carry no `segments` (padded rows, `generate`) behave as with plain `sdpa`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

KERNEL = "pixelthink_segments"


@dataclass(frozen=True)
class Fork:
    """A prompt of `prompt` tokens and G ≥ 2 non-empty completions of `own` tokens together, the longest of T.

    Attributes:
        prompt: Prompt tokens.
        own: Completion tokens.
        pad: For each place of a (G, T) table the completion token that stands there, any at padding, int64 (G × T,);
            None where all completions have T tokens.
        unpad: For each completion token its place in that table, int64 (own,); None likewise.
        mask: Whether completion token t sees a key of `[prompt | completion]`, bool (T, prompt + T).
        size: G.
    """

    prompt: int
    own: int
    pad: Tensor | None
    unpad: Tensor | None
    mask: Tensor
    size: int

    @staticmethod
    def of(prompt: int, lengths: Sequence[int], device: torch.device) -> Fork:
        """From the lengths of the completions, all positive."""
        longest, own = max(lengths), sum(lengths)
        mask = torch.ones(longest, prompt + longest, dtype=torch.bool).tril(prompt).to(device)
        if min(lengths) == longest:
            return Fork(prompt, own, None, None, mask, len(lengths))
        sizes = torch.tensor(lengths)
        steps = torch.arange(longest)
        starts = sizes.cumsum(0) - sizes
        pad = (starts[:, None] + torch.minimum(steps[None], sizes[:, None] - 1)).reshape(-1)
        unpad = (steps[None] < sizes[:, None]).reshape(-1).nonzero()[:, 0]
        return Fork(prompt, own, pad.to(device), unpad.to(device), mask, len(lengths))


@dataclass(frozen=True)
class Segments:
    """A packed row in order: plain causal runs (their lengths) and forks."""

    parts: tuple[int | Fork, ...]

    @staticmethod
    def of(groups: Sequence[tuple[int, Sequence[int]]], device: torch.device) -> Segments:
        """From each group's prompt length and completion lengths; fewer than two completions make one causal run."""
        parts: list[int | Fork] = []
        for prompt, lengths in groups:
            filled = [length for length in lengths if length]
            parts.append(prompt + sum(filled) if len(filled) < 2 else Fork.of(prompt, filled, device))
        return Segments(tuple(parts))

    @property
    def sizes(self) -> list[int]:
        """Lengths of the pieces that a row is cut into: of a run, and of a fork's prompt and completions."""
        return [size for p in self.parts for size in ((p,) if isinstance(p, int) else (p.prompt, p.own))]


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' attention interface wants it.

    Args:
        module: The attention layer.
        query: (batch, heads, queries, D).
        key: (batch, key-value heads, keys, D).
        value: As `key`.
        attention_mask: Bool or additive (batch, 1, queries, keys) or None; not looked at where there are segments.
        dropout: Probability of dropping an attention weight.
        scaling: Factor of the scores.
        segments: Structure of the only row of the batch.
        kwargs: What else transformers passes.

    Returns:
        (batch, queries, heads, D) and None.
    """
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    options: Any = {"dropout_p": dropout, "scale": scaling}
    if segments is None:
        decoding = attention_mask is not None and attention_mask.shape[1] == 1 and query.shape[2] < key.shape[2]
        if not decoding or torch.is_grad_enabled():
            return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
        output = _grouped_attention(query, key, value, attention_mask, options)  # copies no key for each query head
        return output.transpose(1, 2).contiguous(), None
    pieces = zip(*(tensor.split(segments.sizes, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = []
    for part in segments.parts:
        q, k, v = next(pieces)
        keys, values = (repeat_kv(tensor, query.shape[1] // key.shape[1]) for tensor in (k, v))
        outputs.append(scaled_dot_product_attention(q, keys, values, is_causal=True, **options))
        if isinstance(part, Fork):
            outputs.append(_fork_attention(part, next(pieces), k, v, options))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _fork_attention(
    fork: Fork, own: tuple[Tensor, Tensor, Tensor], prompt_key: Tensor, prompt_value: Tensor, options: Any
) -> Tensor:
    """Attention of a fork's completion tokens, (1, heads, own, D), as a batch of G completions."""

    def table(tensor: Tensor) -> Tensor:  # (1, heads, own, D) → (G, heads, T, D)
        padded = tensor if fork.pad is None else tensor.index_select(2, fork.pad)
        return padded[0].unflatten(1, (fork.size, -1)).transpose(0, 1)

    query, key, value = (table(tensor) for tensor in own)
    key = torch.cat([prompt_key.expand(fork.size, -1, -1, -1), key], dim=2)
    value = torch.cat([prompt_value.expand(fork.size, -1, -1, -1), value], dim=2)
    output = _grouped_attention(query, key, value, fork.mask[None, None], options)
    flat = output.transpose(0, 1).flatten(1, 2)[None]
    return flat if fork.unpad is None else flat.index_select(2, fork.unpad)


def _grouped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Any, options: Any) -> Tensor:
    """Masked attention in which the queries that share a key-value head stand side by side, so no key is copied.

    Shapes as in `segment_attention`, the mask (batch or 1, 1, queries, keys). Returns (batch, heads, queries, D).
    """
    repeated = query.shape[1] // key.shape[1]
    folded = query.unflatten(1, (key.shape[1], repeated)).flatten(2, 3)
    output = scaled_dot_product_attention(folded, key, value, attn_mask=mask.repeat(1, 1, repeated, 1), **options)
    return output.unflatten(2, (repeated, query.shape[2])).flatten(1, 2)


def use_segments(model: Any) -> None:
    """Makes `segment_attention` the kernel of a model's language part where that is `sdpa`; else changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(KERNEL, segment_attention)
    AttentionMaskInterface.register(KERNEL, sdpa_mask)  # without this line masks would be dropped in silence
    config = model.model.language_model.config
    if config._attn_implementation == "sdpa":
        config._attn_implementation = KERNEL
