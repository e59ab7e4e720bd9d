"""Groups of completions packed into one row, every prompt computed once.

A group is laid out as `[prompt | c1 | … | cG]`, groups follow each other, nothing is padded. A completion token sees
its own prompt and the earlier tokens of its own completion; its rotary positions continue from the prompt's end. So
every hidden state equals that of a row `[prompt | completion]` of its own, and so do all gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pixelthink.errors import UserError
from pixelthink.policies.attention import KERNEL, Segments
from pixelthink.policies.base import EncodedPrompt
from pixelthink.policies.vision import image_inputs, prompt_positions, vision_features

PREFIX_KERNELS = ("sdpa", "eager", "flex_attention")


@dataclass(frozen=True)
class PackedGroups:
    """One row of L tokens, and where everything is in it.

    Attributes:
        token_ids: int64 (L,).
        position_ids: Rotary positions (time, height, width), int64 (3, L).
        group: Which group each token belongs to, int64 (L,).
        part: 0 at prompt tokens, 1 to G at the tokens of the group's completions, int64 (L,).
        predictors: Positions whose hidden states predict the completion tokens, completion after completion in the
            order in which they were given, int64 (sum of completion lengths,).
        groups: The same structure as lengths: of each group's prompt and of its completions.
    """

    token_ids: Tensor
    position_ids: Tensor
    group: Tensor
    part: Tensor
    predictors: Tensor
    groups: list[tuple[int, tuple[int, ...]]]

    def visible(self) -> Tensor:
        """Whether the token of a row (query) sees that of a column (key), bool (L, L)."""
        index = torch.arange(len(self.group), device=self.group.device)
        return sees(index[:, None], index[None], self.group, self.part)


def sees(query: Tensor, key: Tensor, group: Tensor, part: Tensor) -> Tensor:
    """Whether a query token attends to a key token, by their indices into the row; see `PackedGroups`."""
    same_completion = (part[key] == 0) | (part[key] == part[query])
    return (key <= query) & (group[key] == group[query]) & same_completion


def pack_groups(
    prompts: Sequence[tuple[Tensor, Tensor]], completions: Sequence[Tensor], prompt_index: Sequence[int]
) -> PackedGroups:
    """Lays completions out behind their prompts.

    Args:
        prompts: Token ids (length,) and rotary positions (3, length) of each prompt.
        completions: Token ids (length,) each; may be empty.
        prompt_index: Which prompt each completion follows, in any order.
    """
    tokens: list[Tensor] = []
    positions: list[Tensor] = []
    parts: list[Tensor] = []
    groups: list[tuple[int, tuple[int, ...]]] = []
    predictors: dict[int, list[int]] = {}
    end = 0
    for p in sorted(set(prompt_index)):
        members = [n for n, owner in enumerate(prompt_index) if owner == p]
        token_ids, position_ids = prompts[p]
        pieces = [token_ids, *(completions[n] for n in members)]
        prompt, *lengths = (len(piece) for piece in pieces)
        following = (position_ids.max() + 1 + torch.arange(length) for length in lengths)
        tokens += pieces
        positions += [position_ids, *(place.expand(3, -1) for place in following)]
        parts += [torch.full((length,), part) for part, length in enumerate((prompt, *lengths))]
        groups.append((prompt, tuple(lengths)))
        end += prompt
        last = end - 1
        for n, length in zip(members, lengths, strict=True):
            predictors[n] = [last, *range(end, end + length - 1)] if length else []
            end += length
    sizes = torch.tensor([prompt + sum(lengths) for prompt, lengths in groups])
    return PackedGroups(
        token_ids=torch.cat(tokens),
        position_ids=torch.cat(positions, dim=1),
        group=torch.arange(len(groups)).repeat_interleave(sizes),
        part=torch.cat(parts),
        predictors=torch.tensor([i for n in range(len(completions)) for i in predictors[n]], dtype=torch.int64),
        groups=groups,
    )


def packed_hidden(
    core: Any, prompts: Sequence[EncodedPrompt], completions: Sequence[Tensor], prompt_index: Sequence[int]
) -> Tensor:
    """Hidden states that predict each completion token, (sum of completion lengths, D), each prompt computed once.

    Args:
        core: A Qwen-VL model without its head.
        prompts: P prompts; those that no completion follows cost nothing.
        completions: Token ids (length,) each; may be empty.
        prompt_index: Which prompt each completion follows.
    """
    device = next(core.parameters()).device
    used = sorted(set(prompt_index))
    places = [(p.token_ids, prompt_positions(core, p)) if i in set(used) else None for i, p in enumerate(prompts)]
    packed = pack_groups(places, [c.cpu() for c in completions], prompt_index)  # type: ignore[arg-type]
    features = vision_features(core, [prompts[p] for p in used])
    outputs = core(
        input_ids=packed.token_ids[None].to(device),
        position_ids=packed.position_ids[:, None].to(device),
        use_cache=False,
        **image_inputs(features),
        **attention_arguments(core, packed, device),
    )
    return outputs.last_hidden_state[0].index_select(0, packed.predictors.to(device))


def attention_arguments(core: Any, packed: PackedGroups, device: torch.device) -> dict[str, Any]:
    """Keyword arguments of a model's forward that carry the attention pattern of packed groups.

    Raises:
        UserError: if the model's attention kernel or its sliding windows cannot express it; one line.
    """
    config = core.language_model.config
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise UserError("policy.logprobs: shared_prefix does not cover sliding-window layers; set it to padded")
    if config._attn_implementation == KERNEL:
        return {"segments": Segments.of(packed.groups, device)}
    if config._attn_implementation == "flex_attention":
        return {"attention_mask": flex_block_mask(packed, device)}
    return {"attention_mask": attention_mask(core, packed.visible()[None].to(device))}


def attention_mask(core: Any, visible: Tensor) -> Tensor:
    """A mask as the model's attention kernel takes it, (batch, 1, queries, keys).

    Args:
        core: A Qwen-VL model without its head.
        visible: Whether a query attends to a key, bool (batch, queries, keys).

    Raises:
        UserError: if the kernel takes no masks; one line.
    """
    kernel = core.language_model.config._attn_implementation
    if kernel in (KERNEL, "sdpa"):
        return visible[:, None]
    if kernel == "eager":
        dtype = core.language_model.embed_tokens.weight.dtype
        return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)[:, None]
    raise UserError(
        f"attn_implementation {kernel!r} takes no masks: set it to sdpa, or policy.logprobs to padded and sample with "
        "another rollout engine"
    )


def flex_block_mask(packed: PackedGroups, device: torch.device) -> Any:
    """FlexAttention's block mask of packed groups.

    Its rule is tested against `PackedGroups.visible`; FlexAttention's own kernels need a GPU and are NOT tested here.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    group, part, length = packed.group.to(device), packed.part.to(device), len(packed.group)

    def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(query, key, group, part)

    return create_block_mask(rule, None, None, length, length, device=str(device), _compile=device.type == "cuda")
