"""What ran: the settings that a run's numbers depend on, and what else a reader of its results wants to know."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import lightning as L
import torch
from torch import nn

from pixelthink.evaluation.policy_module import PolicyModule
from pixelthink.parallel.collectives import all_gather_object

PACKAGES = ("pixelthink", "torch", "transformers", "lightning", "torchmetrics", "numpy", "vllm", "sam2")
VALUES_PER_TENSOR = 4096

_SOURCE_OF_STAGE = {"validate": "val", "test": "test", "predict": "predict"}


def run_settings(trainer: L.Trainer, module: PolicyModule, stage: str) -> dict[str, Any]:
    """All that answers and their numbers depend on; rows of an interrupted run are only used under equal settings.

    The weights count by their fingerprint, not by their path. Every process has to call this.
    """
    config = module.run_config or {}
    model = _init_args(config.get("model"))
    data = config.get("data") or {}
    evaluation = module.evaluation
    return {
        "stage": stage,
        "protocol": evaluation.protocol,
        "weights": fingerprint(module.policy),
        "seed": config.get("seed_everything"),
        "sampling": asdict(evaluation.sampling),
        "engine": f"{type(module.rollout).__module__}.{type(module.rollout).__qualname__}",
        "segmenter": model.get("segmenter") or type(module.segmenter).__qualname__,
        "data": data.get(_SOURCE_OF_STAGE[stage]),
        "prompt": data.get("prompt") or module.answer_style,
        "image_size": getattr(getattr(trainer, "datamodule", None), "image_size", None),
        "coordinates": module.backbone.convention,
    }


def run_header(trainer: L.Trainer, module: PolicyModule, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of `run.json`: settings, policy and checkpoint, versions, time, and the whole configuration."""
    checkpoint = trainer.ckpt_path
    return {
        **settings,
        "policy": getattr(module.backbone, "path", type(module.backbone).__name__),
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "count": module.evaluation.count,
        "bootstrap": {"samples": module.evaluation.bootstrap_samples, "seed": module.evaluation.bootstrap_seed},
        "model_billions": module.evaluation.model_billions,
        "processes": trainer.world_size,
        "device": str(module.device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": dict(_versions()),
        "config": module.run_config,
    }


def fingerprint(model: nn.Module | None) -> str:
    """A number that another training step would change: a hash over values spread evenly through every parameter.

    The same on one process and on several copies; of sharded weights it also depends on how they are sharded.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters() if model is not None else ():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        flat = local.detach().flatten()
        step = max(1, flat.numel() // VALUES_PER_TENSOR)
        digest.update(f"{name} {tuple(local.shape)}".encode())
        digest.update(flat[::step].to("cpu", torch.float32).numpy().tobytes())
    own = digest.hexdigest()[:20]
    everyone = all_gather_object(own)
    return own if set(everyone) == {own} else hashlib.sha256(" ".join(everyone).encode()).hexdigest()[:20]


def _init_args(component: Any) -> Mapping[str, Any]:
    found = component.get("init_args") if isinstance(component, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _versions() -> list[tuple[str, str]]:
    found = []
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return found
