"""What ran: the settings that a run's numbers depend on, and what else a reader of its results wants to know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import SaveConfigCallback
from torch import nn

from pixelthink.answering.answerer import Answerer
from pixelthink.evaluation.config import EvaluationConfig
from pixelthink.parallel.collectives import all_gather_object

PACKAGES = ("pixelthink", "torch", "transformers", "lightning", "torchmetrics", "numpy", "vllm", "sam2")
VALUES_PER_TENSOR = 4096

_SOURCE_OF_STAGE = {"validate": "val", "test": "test", "predict": "predict"}


def run_config(trainer: L.Trainer) -> dict[str, Any]:
    """The configuration of the command line, as JSON; empty where a script made the trainer."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SaveConfigCallback):
            plain = callback.config.clone()
            plain.pop("config", None)
            return json.loads(json.dumps(plain.as_dict(), default=str))
    return {}


def run_settings(
    trainer: L.Trainer, answerer: Answerer, policy: nn.Module, config: EvaluationConfig, stage: str
) -> dict[str, Any]:
    """Everything that answers and their numbers depend on; rows of an interrupted run need equal settings.

    The weights count by their fingerprint, not by their path. All processes call this together.
    """
    whole = run_config(trainer)
    model, data = _init_args(whole.get("model")), whole.get("data") or {}
    datamodule = getattr(trainer, "datamodule", None)
    return {
        "stage": stage,
        "protocol": config.protocol,
        "weights": fingerprint(policy),
        "seed": whole.get("seed_everything"),
        "acceptance": config.accepts,
        "sampling": asdict(config.sampling_of(answerer.backbone)),
        "engine": answerer.engine.name,
        "segmenter": model.get("segmenter") or type(answerer.segmenter).__qualname__,
        "data": data.get(_SOURCE_OF_STAGE[stage]),
        "prompt": data.get("prompt") or getattr(getattr(datamodule, "prompt", None), "answer_style", None),
        "image_size": getattr(datamodule, "image_size", None),
        "resize": getattr(datamodule, "resize", None),
        "coordinates": answerer.backbone.convention,
    }


def run_header(
    trainer: L.Trainer, answerer: Answerer, config: EvaluationConfig, device: torch.device | str
) -> dict[str, Any]:
    """What `run.json` says beside the settings: policy and checkpoint, versions, time, and the whole configuration."""
    checkpoint = trainer.ckpt_path
    return {
        "policy": getattr(answerer.backbone, "path", type(answerer.backbone).__name__),
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "count": config.count,
        "deviations": deviations(trainer, answerer, config),
        "bootstrap": {"samples": config.bootstrap_samples, "seed": config.bootstrap_seed},
        "model_billions": config.model_billions,
        "processes": trainer.world_size,
        "device": str(device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": dict(_versions()),
        "config": run_config(trainer) or None,
    }


def deviations(trainer: L.Trainer, answerer: Answerer, config: EvaluationConfig) -> list[str]:
    """In what the run is not its protocol's, see `EvaluationConfig.deviations`."""
    resize = getattr(getattr(trainer, "datamodule", None), "resize", None)
    return config.deviations(resize, getattr(answerer.segmenter, "autocast", None))


def fingerprint(model: nn.Module) -> str:
    """A number that another training step would change: a hash over values spread evenly through every parameter.

    The same on one process and on several copies; of sharded weights it also depends on how they are sharded.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        flat = local.detach().flatten()
        step = max(1, flat.numel() // VALUES_PER_TENSOR)
        digest.update(f"{name} {tuple(local.shape)}".encode())
        digest.update(flat[::step].to("cpu", torch.float32).numpy().tobytes())
    everyone = all_gather_object(digest.hexdigest()[:20])
    return everyone[0] if len(set(everyone)) == 1 else hashlib.sha256(" ".join(everyone).encode()).hexdigest()[:20]


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
