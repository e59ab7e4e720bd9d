"""Components that misbehave, for tests of bad input."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from pixelthink.data.base import SampleSource
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.rollouts.hf import HFEngine
from pixelthink.types import Completion, PromptBatch, RolloutBatch, Sample


class BadSource(SampleSource):
    """Two miniature scenes, the second of which is wrong.

    Args:
        difficulty: Its difficulty.
        mask_rows: Rows of its mask, whose image has 112.
    """

    def __init__(self, difficulty: float = 3.0, mask_rows: int = 112) -> None:
        self.difficulty = difficulty
        self.mask_rows = mask_rows

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        sample = ShapeScenes(size=2)[index]
        assert sample.mask is not None
        if index == 0:
            return sample
        return replace(sample, difficulty=self.difficulty, mask=sample.mask[: self.mask_rows])


class BraceEngine(HFEngine):
    """An engine whose every response is 100 kB of opening braces."""

    def generate(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> RolloutBatch:
        text = "{" * 100_000
        completion = Completion((1, 2), (-1.0, -1.0), text, "length", reasoning_tokens=0, uncertainty=0.5)
        return RolloutBatch(batch.prompts, (completion,) * len(batch) * sampling.group_size, sampling.group_size)


class FillDisk(Callback):
    """Fills the disk of a folder to the last byte, before a step or when training ends.

    Args:
        folder: Any folder on that disk.
        before_step: Optimizer steps to wait for; −1 waits for the end.
    """

    def __init__(self, folder: str, before_step: int = -1) -> None:
        self.folder = folder
        self.before_step = before_step

    def on_train_batch_start(self, trainer: L.Trainer, *rest: Any) -> None:
        if trainer.global_step == self.before_step:
            self._fill()

    def on_fit_end(self, *rest: Any) -> None:
        if self.before_step < 0:
            self._fill()

    def on_test_epoch_end(self, *rest: Any) -> None:
        self._fill()

    def _fill(self) -> None:
        with contextlib.suppress(OSError), (Path(self.folder) / "filler").open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 10, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"\0" * size) == size:
                        pass
