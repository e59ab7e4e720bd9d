"""Writes what a test or a prediction found: one JSON of metrics, one JSON line a sample."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from pixelthink.geometry import encode_rle
from pixelthink.jsonl import write_rows_atomically
from pixelthink.types import Prediction


class ResultsWriter(Callback):
    """Writes `metrics.json` and `samples.jsonl` to a folder when testing or predicting ends.

    Args:
        path: Folder to write to; made where it is missing.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._rows: list[dict[str, Any]] = []

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *rest: Any) -> None:
        self._rows += [prediction_row(prediction) for prediction in outputs]

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *rest: Any) -> None:
        self._rows += [prediction_row(prediction) for prediction in outputs]

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, with_metrics=True)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, with_metrics=False)

    def _write(self, trainer: L.Trainer, *, with_metrics: bool) -> None:
        rows, self._rows = _gather(self._rows), []
        if not trainer.is_global_zero:
            return
        try:
            self._write_files(trainer, rows, with_metrics=with_metrics)
        except OSError as error:
            raise OSError(f"results cannot be written to {self.path}: {error.strerror or error}") from error

    def _write_files(self, trainer: L.Trainer, rows: list[dict[str, Any]], *, with_metrics: bool) -> None:
        folder = Path(self.path)
        folder.mkdir(parents=True, exist_ok=True)
        write_rows_atomically(folder / "samples.jsonl", rows)
        if with_metrics:
            metrics = {k.removeprefix("test/"): float(v) for k, v in trainer.callback_metrics.items() if "/" in k}
            write_text_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")


def write_text_atomically(path: Path, text: str) -> None:
    """Writes a text file that appears whole or not at all."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def prediction_row(prediction: Prediction) -> dict[str, Any]:
    """A prediction as a JSON object; the mask as COCO RLE in original pixels."""
    sample, completion = prediction.prompt.sample, prediction.completion
    return {
        "id": sample.id,
        "question": sample.question,
        "difficulty": sample.difficulty,
        "response": completion.text,
        "finish_reason": completion.finish_reason,
        "reasoning_tokens": completion.reasoning_tokens,
        "response_tokens": len(completion.token_ids),
        "uncertainty": completion.uncertainty,
        "failure": prediction.failure,
        "prediction": encode_rle(prediction.mask),
        "target": None if sample.mask is None else encode_rle(sample.mask),
        "ignore": None if sample.ignore is None else encode_rle(sample.ignore),
    }


def _gather(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, rows)
    return [row for rows in everyone for row in rows]
