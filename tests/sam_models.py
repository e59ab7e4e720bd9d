"""Segment Anything models with seeded random weights: there are no trained ones here, and equality needs none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pixelthink.geometry import Target


def random_sam2_checkpoint(path: Path, config: str = "sam2.1/sam2.1_hiera_t", seed: int = 0) -> Path:
    """Saves a model of the `sam2` package as its checkpoints are saved; built the package's own way."""
    from sam2.build_sam import build_sam2

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_sam2(f"configs/{config}.yaml", device="cpu")
    torch.save({"model": model.state_dict()}, path)
    return path


def tiny_hf_sam2(folder: Path, seed: int = 0) -> Path:
    """Saves a transformers `Sam2Model` of 0.8M parameters for images of 256 px, with its processor."""
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

    hiera = {
        "hidden_size": 24,
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [24, 48, 96, 192],
        "global_attention_blocks": [3],
        "image_size": [256, 256],
    }
    vision = {
        "backbone_config": hiera,
        "backbone_channel_list": [192, 96, 48, 24],
        "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
        "fpn_hidden_size": 64,
    }
    decoder = {
        "hidden_size": 64,
        "mlp_dim": 64,
        "num_attention_heads": 4,
        "iou_head_hidden_dim": 32,
        "dynamic_multimask_via_stability": False,  # random single masks are unstable, and would never be seen
    }
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 64, "image_size": 256, "patch_size": 16},
        mask_decoder_config=decoder,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Sam2Model(config).save_pretrained(folder)
    Sam2Processor(Sam2ImageProcessor(size={"height": 256, "width": 256})).save_pretrained(folder)
    return folder


def tiny_hf_sam3(folder: Path, seed: int = 0) -> Path:
    """Saves a transformers `Sam3TrackerModel` of 0.1M parameters for images of 224 px, with its processor."""
    from transformers import Sam3ImageProcessor, Sam3TrackerConfig, Sam3TrackerModel, Sam3TrackerProcessor

    vit = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 224,
        "window_size": 8,
        "global_attn_indexes": [1],
        "pretrain_image_size": 112,
    }
    vision = {
        "backbone_config": vit,
        "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
        "fpn_hidden_size": 32,
    }
    config = Sam3TrackerConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": 224, "patch_size": 14},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 32},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Sam3TrackerModel(config).save_pretrained(folder)
    Sam3TrackerProcessor(Sam3ImageProcessor(size={"height": 224, "width": 224})).save_pretrained(folder)
    return folder


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def target(x1: float, y1: float, x2: float, y2: float) -> Target:
    """A box with two points on its diagonal."""
    return Target((x1, y1, x2, y2), ((0.7 * x1 + 0.3 * x2, 0.7 * y1 + 0.3 * y2), ((x1 + x2) / 2, (y1 + y2) / 2)))
