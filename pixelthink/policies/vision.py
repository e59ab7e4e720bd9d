"""Vision features of encoded prompts, computed once per image, and rotary positions of prompt tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pixelthink.policies.base import EncodedPrompt, VisionFeatures


def vision_features(core: Any, prompts: Sequence[EncodedPrompt]) -> list[VisionFeatures]:
    """Features of each prompt's images: those that it carries, else from one pass of the tower over all the others.

    Args:
        core: The model without its head; has `get_image_features` and runs on the device that the features end on.
        prompts: Prompts with or without images.
    """
    missing = [i for i, p in enumerate(prompts) if p.features is None and len(p.image_grid)]
    found = {i: p.features for i, p in enumerate(prompts) if p.features is not None}
    if missing:
        device = next(core.parameters()).device
        patches = torch.cat([prompts[i].pixel_values for i in missing]).to(device)
        grids = torch.cat([prompts[i].image_grid for i in missing]).to(device)
        output = core.get_image_features(patches, grids, return_dict=True)
        layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
        counts = [len(prompts[i].image_grid) for i in missing]
        start = 0
        for i, count in zip(missing, counts, strict=True):
            images, *deep = (torch.cat(list(layer[start : start + count])) for layer in layers)
            found[i] = VisionFeatures(images, tuple(deep))
            start += count
    empty = VisionFeatures(next(core.parameters()).new_zeros(0, core.config.text_config.hidden_size), ())
    return [found.get(i, empty) for i in range(len(prompts))]


def image_inputs(features: Sequence[VisionFeatures]) -> dict[str, Any]:
    """Keyword arguments by which a transformers forward takes features, in the order of the image tokens."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    filled = [f for f in features if len(f.images)]
    if not filled:
        return {}
    output: Any = BaseModelOutputWithPooling(pooler_output=[f.images for f in filled])  # type: ignore[arg-type]
    output.deepstack_features = [list(layer) for layer in zip(*(f.deepstack for f in filled), strict=True)]
    return {"mm_encoder_outputs": {"image": output}}


def prompt_positions(core: Any, prompt: EncodedPrompt) -> Tensor:
    """Rotary positions (time, height, width) of a prompt's tokens, int64 (3, L), on the CPU."""
    token_ids = prompt.token_ids[None]
    kinds = (token_ids == core.config.image_token_id).int()
    grid = prompt.image_grid if len(prompt.image_grid) else None
    position_ids, _ = core.get_rope_index(token_ids, kinds, image_grid_thw=grid)
    return position_ids[:, 0]


def tower_is_frozen(core: nn.Module) -> bool:
    """Whether no parameter of the vision tower is trained."""
    tower: Any = core.visual
    return not any(parameter.requires_grad for parameter in tower.parameters())
