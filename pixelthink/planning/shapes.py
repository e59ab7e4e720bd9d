"""Models without their weights: from a folder's own config.json, or from the dimensions that their authors published.

The table holds facts from the models' public config.json files. `tests/unit/test_memory_shapes.py` compares the number
of parameters that they lead to with the published ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pixelthink.errors import UserError
from pixelthink.planning.quantized import quantize_shapes
from pixelthink.policies.base import PolicyBackbone
from pixelthink.policies.quantization import Quantization
from pixelthink.policies.qwen_vl import Qwen25VL


def _qwen25(
    hidden: int, layers: int, heads: int, key_values: int, intermediate: int, vocabulary: int, vision_mlp: int
) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": hidden == 2048,
        "text_config": {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_values,
            "intermediate_size": intermediate,
            "vocab_size": vocabulary,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": vision_mlp,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "window_size": 112,
            "patch_size": 14,
        },
    }


def _qwen3(hidden: int, layers: int, heads: int, intermediate: int, tied: bool) -> dict[str, Any]:
    small_tower = tied
    return {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": tied,
        "text_config": {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": intermediate,
            "vocab_size": 151_936,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        "vision_config": {
            "depth": 24 if small_tower else 27,
            "hidden_size": 1024 if small_tower else 1152,
            "intermediate_size": 4096 if small_tower else 4304,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "patch_size": 16,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17] if small_tower else [8, 16, 24],
        },
    }


PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen25(2048, 36, 16, 2, 11_008, 151_936, 3420),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen25(3584, 28, 28, 4, 18_944, 152_064, 3420),
    "Qwen/Qwen2.5-VL-32B-Instruct": _qwen25(5120, 64, 40, 8, 27_648, 152_064, 3456),
    "Qwen/Qwen2.5-VL-72B-Instruct": _qwen25(8192, 80, 64, 8, 29_568, 152_064, 3456),
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3(2048, 28, 16, 6144, tied=True),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3(2560, 36, 32, 9728, tied=True),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3(4096, 36, 32, 12_288, tied=False),
    "Qwen/Qwen3-VL-32B-Instruct": _qwen3(5120, 64, 64, 25_600, tied=False),
}
"""Configs by hub id; a name that differs in its last word (`-Thinking`) has the same dimensions."""


def shape_of(path: str) -> Any:
    """The transformers config of a model; nothing is asked of a model hub.

    Args:
        path: Folder in Hugging Face format, or a hub id that `PUBLISHED` has.

    Raises:
        UserError: neither; one line that lists the known ids.
    """
    from transformers import AutoConfig

    if (Path(path) / "config.json").is_file():
        return AutoConfig.from_pretrained(path, local_files_only=True)
    stem = path.rpartition("-")[0]
    for name, fields in PUBLISHED.items():
        if path == name or stem == name.rpartition("-")[0]:
            return AutoConfig.for_model(**fields)
    known = ", ".join(PUBLISHED)
    raise UserError(f"policy.path: {path!r} is no folder with a config.json, and its dimensions are known of: {known}")


def model_without_weights(backbone: PolicyBackbone, quantization: Quantization | None = None) -> nn.Module:
    """The model that `backbone.load_model` would give, its values random; call it under `ShapesOnly`.

    Args:
        backbone: The policy.
        quantization: In place of the policy's own.

    Raises:
        UserError: the backbone cannot make a model from its dimensions, or they are not known.
    """
    if not isinstance(backbone, Qwen25VL):
        raise UserError(f"memory plans are made of Qwen-VL policies, not of {type(backbone).__name__}")
    if not backbone.path:  # made from nothing anyway
        backbone.setup()
        return backbone.load_model()
    from transformers import AutoModelForImageTextToText

    dtype, attention = getattr(torch, backbone.dtype), backbone.attn_implementation
    model = AutoModelForImageTextToText.from_config(shape_of(backbone.path), dtype=dtype, attn_implementation=attention)
    quantization = backbone.quantization if quantization is None else quantization
    if quantization != "none":
        quantize_shapes(model, quantization)
    return backbone.prepare(model)
