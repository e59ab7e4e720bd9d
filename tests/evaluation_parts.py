"""Components with which tests of the evaluation make things go wrong, or go by a script."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from PIL import Image

from pixelthink.data.base import SampleSource
from pixelthink.data.images import open_rgb
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.rollouts.hf import HFEngine
from pixelthink.segmenters.base import SegmentationRequest, Segmenter
from pixelthink.types import Completion, PromptBatch, RolloutBatch, Sample


class ScriptedEngine(HFEngine):
    """Responds to each sample what a file says.

    Args:
        script: JSON object, id → response.
    """

    def __init__(self, script: str) -> None:
        super().__init__()
        self.script = script

    def generate(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> RolloutBatch:
        texts = json.loads(Path(self.script).read_text(encoding="utf-8"))
        found = [texts[prompt.sample.id] for prompt in batch.prompts]
        completions = [Completion((1, 2), (-1.0, -1.0), text, "stop", len(text.split()), 0.5) for text in found]
        return RolloutBatch(batch.prompts, tuple(completions), 1)


class RehearsedEngine(HFEngine):
    """Gives each prompt a group of known responses, in the policy's own tokens, so that it can train on them.

    Args:
        texts: One response for each completion of a group.
    """

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.texts = texts

    def generate(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> RolloutBatch:
        group = []
        for text in self.texts:
            token_ids = tuple(self.backbone.processor.tokenizer.encode(text, add_special_tokens=False))
            group.append(Completion(token_ids, (-1.0,) * len(token_ids), text, "stop", len(text.split()), 0.5))
        return RolloutBatch(batch.prompts, tuple(group * len(batch)), len(group))


class BoxFiller(Segmenter):
    """The mask is the box.

    Args:
        fails_at: Left edge of the box on which it raises.
        tiny_at: Left edge of the box for which it gives a mask of one pixel.
    """

    def __init__(self, fails_at: int = -1, tiny_at: int = -1) -> None:
        self.fails_at = fails_at
        self.tiny_at = tiny_at

    def segment(self, requests: Sequence[SegmentationRequest]) -> list[np.ndarray]:
        return [self._fill(request) for request in requests]

    def _fill(self, request: SegmentationRequest) -> np.ndarray:
        mask = np.zeros((request.image.height, request.image.width), dtype=bool)
        for x1, y1, x2, y2 in (tuple(int(v) for v in target.box_xyxy) for target in request.objects):
            if x1 == self.fails_at:
                raise RuntimeError("no such\nthing")
            if x1 == self.tiny_at:
                return np.ones((1, 1), dtype=bool)
            mask[y1 : y2 + 1, x1 : x2 + 1] = True
        return mask


class RemoveFile(Callback):
    """Removes a file when the first batch has been evaluated.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_test_batch_end(self, *rest: Any) -> None:
        Path(self.path).unlink(missing_ok=True)


class DamageFile(Callback):
    """Overwrites a file's end, or all of it, when the first batch has been answered, in whatever run it is.

    Args:
        path: The file.
        keep: Bytes that are left of its beginning.
    """

    def __init__(self, path: str, keep: int) -> None:
        self.path = path
        self.keep = keep

    def on_test_batch_end(self, *rest: Any) -> None:
        Path(self.path).write_bytes(Path(self.path).read_bytes()[: self.keep])

    on_validation_batch_end = on_predict_batch_end = on_test_batch_end


class KillRun(Callback):
    """Kills the process before a batch of a test begins.

    Args:
        before_batch: Number of the batch, from 0.
    """

    def __init__(self, before_batch: int) -> None:
        self.before_batch = before_batch

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        if batch_idx == self.before_batch:
            os.kill(os.getpid(), signal.SIGKILL)


class NoImages(SampleSource):
    """Two samples whose images are where nobody put them."""

    def __len__(self) -> int:
        return 2

    def ids(self) -> list[str]:
        return ["a", "b"]

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.ids()[index], open_rgb(f"/nowhere/{index}.jpg"), "what?")


class WrongMask(SampleSource):
    """A sample as it should be, and one whose mask is of another image."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        side = 8 - 3 * index
        return Sample("ab"[index], Image.new("RGB", (8, 8)), "what?", np.ones((side, side), dtype=bool))
