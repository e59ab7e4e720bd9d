"""Random models of both families, small enough for exact comparisons on a CPU, and random prompts for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixelthink.policies.base import EncodedPrompt
from pixelthink.policies.qwen3_vl import Qwen3VL
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.policies.tiny import FreshTinyQwen25VL

IMAGE_TOKEN, VOCABULARY = 90, 97
FAMILIES = ("qwen2.5", "qwen3")
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 95,
}
IDS = {"image_token_id": IMAGE_TOKEN, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}

TINY_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "layers": 2,
    "intermediate_size": 96,
    "vision_hidden_size": 32,
    "vision_layers": 2,
}
"""Sizes of policies on disk."""


def save_tiny(backbone: FreshTinyQwen25VL, folder: Path) -> Path:
    """Writes a fresh policy to an existing folder and returns it."""
    backbone.setup()
    backbone.save(backbone.load_model(), folder)
    return folder


def tiny_model(family: str, seed: int = 0, tied: bool = True, **options: Any) -> tuple[Qwen25VL, Any]:
    """A backbone and its model, weights scaled up so that attention is far from uniform."""
    backbone = Qwen25VL(**options) if family == "qwen2.5" else Qwen3VL(**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _qwen25(tied) if family == "qwen2.5" else _qwen3(tied)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.12)
    model.config.get_text_config()._attn_implementation = options.get("attn_implementation", "sdpa")
    return backbone, backbone.prepare(model)


def _rope(interleaved: bool) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
    return {**rope, "mrope_interleaved": True} if interleaved else rope


def _qwen25(tied: bool) -> nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 48,
        "fullatt_block_indexes": [1],
        "window_size": 56,
        "patch_size": 14,
    }
    text = {**TEXT, "rope_parameters": _rope(False)}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **IDS)
    )


def _qwen3(tied: bool) -> nn.Module:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 48,
        "patch_size": 14,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    text = {**TEXT, "head_dim": 12, "rope_parameters": _rope(True)}
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **IDS)
    )


def random_prompt(grids: Sequence[tuple[int, int]], generator: torch.Generator) -> EncodedPrompt:
    """A prompt with an image of each patch grid (height, width), random text before, between and after them."""
    pieces = []
    for height, width in grids:
        pieces.append(random_tokens(int(torch.randint(1, 6, (), generator=generator)), generator))
        pieces.append(torch.full((height * width // 4,), IMAGE_TOKEN))
    pieces.append(random_tokens(int(torch.randint(1, 6, (), generator=generator)), generator))
    patches = sum(height * width for height, width in grids)
    grid = torch.tensor([(1, *sides) for sides in grids], dtype=torch.int64).reshape(-1, 3)
    return EncodedPrompt(torch.cat(pieces), torch.randn(patches, 3 * 2 * 14 * 14, generator=generator), grid)


def random_tokens(length: int, generator: torch.Generator) -> Tensor:
    """Token ids without special ones, (length,)."""
    return torch.randint(0, IMAGE_TOKEN, (length,), generator=generator)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """All gradients by name, and clears them."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def relative_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest ‖a − b‖ / ‖b‖ over tensors that must have the same names; tensors of zeros must be equal."""
    assert found.keys() == expected.keys()
    floor = 1e-6 * max(float(t.norm()) for t in expected.values())
    return max(float((found[n] - t).norm()) / max(float(t.norm()), floor) for n, t in expected.items())
