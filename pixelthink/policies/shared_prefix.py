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
        segments: The same structure as lengths, for the attention kernel.
    """

    token_ids: Tensor
    position_ids: Tensor
    group: Tensor
    part: Tensor
    predictors: Tensor
    segments: Segments

    def visible(self) -> Tensor:
        """Whether the token of a row (query) sees that of a column (key), bool (L, L)."""
        index = torch.arange(len(self.group), device=self.group.device)
        return sees(index[:, None], index[None], self.group, self.part)


def sees(query: Tensor, key: Tensor, group: Tensor, part: Tensor) -> Tensor:
    """The rule of who sees whom, by indices into the row; all arguments as in `PackedGroups`."""
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
    sizes: list[int] = []
    lengths: list[tuple[int, tuple[int, ...]]] = []
    predictors: dict[int, Tensor] = {}
    length = 0
    for p in sorted(set(prompt_index)):
        members = [n for n, owner in enumerate(prompt_index) if owner == p]
        token_ids, position_ids = prompts[p]
        end, last = length, length + len(token_ids) - 1
        for part, (ids, place) in enumerate([(token_ids, position_ids)] + [(completions[n], None) for n in members]):
            tokens.append(ids)
            following = position_ids.max() + 1 + torch.arange(len(ids))
            positions.append(following.expand(3, -1) if place is None else place)
            parts.append(torch.full((len(ids),), part))
            if part and len(ids):
                predictors[members[part - 1]] = torch.cat([torch.tensor([last]), torch.arange(end, end + len(ids) - 1)])
            end += len(ids)
        sizes.append(end - length)
        lengths.append((len(token_ids), tuple(len(completions[n]) for n in members)))
        length = end
    order = [predictors[n] for n in range(len(completions)) if n in predictors]
    return PackedGroups(
        token_ids=torch.cat(tokens),
        position_ids=torch.cat(positions, dim=1),
        group=torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
        part=torch.cat(parts),
        predictors=torch.cat(order) if order else torch.zeros(0, dtype=torch.int64),
        segments=Segments.of(lengths),
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
    """How a model is told who sees whom.

    Raises:
        UserError: if the model's attention kernel or its sliding windows cannot express it; one line.
    """
    config = core.language_model.config
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise UserError("policy.logprobs: shared_prefix does not cover sliding-window layers; set it to padded")
    if config._attn_implementation == KERNEL:
        return {"segments": packed.segments.to(device)}
    if config._attn_implementation == "flex_attention":
        return {"attention_mask": flex_block_mask(packed, device)}
    return {"attention_mask": attention_mask(core, packed.visible()[None].to(device))}


def attention_mask(core: Any, visible: Tensor) -> Tensor:
    """A mask as the model's attention kernel takes it, (batch, 1, queries, keys).

    Args:
        core: A Qwen-VL model without its head.
        visible: Who sees whom, bool (batch, queries, keys).

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
    """The block mask by which FlexAttention skips what nobody sees.

    Its rule is tested against `PackedGroups.visible`; FlexAttention's own kernels need a GPU and are NOT tested here.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    group, part, length = packed.group.to(device), packed.part.to(device), len(packed.group)

    def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(query, key, group, part)

    return create_block_mask(rule, None, None, length, length, device=str(device), _compile=device.type == "cuda")
