"""Callbacks that tests load through PIXELTHINK_PLUGINS."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class ServerKiller(Callback):
    """Kills a rollout server, front and vLLM, in the middle of a step's rollout.

    Args:
        process: Process group of the server.
        step: When.
        after: Seconds that the rollout has been going on for.
    """

    def __init__(self, process: int, step: int, after: float = 0.2) -> None:
        self.process, self.step, self.after = process, step, after

    def on_train_batch_start(self, trainer: L.Trainer, *rest: Any) -> None:
        if trainer.global_step == self.step:
            threading.Timer(self.after, os.killpg, (self.process, signal.SIGKILL)).start()


class StepRecorder(Callback):
    """Appends each step's number, losses and sampled lengths to a JSON Lines file.

    Args:
        path: The file.
        kill_before_step: Kill this process with SIGKILL before this step (counted from 0) begins; −1 for never.
    """

    def __init__(self, path: str, kill_before_step: int = -1) -> None:
        self.path = path
        self.kill_before_step = kill_before_step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.ids = [prompt.sample.id for prompt in batch.prompts]
        if trainer.global_step == self.kill_before_step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer: L.Trainer, *rest: Any, **named: Any) -> None:
        names = ("loss/loss", "loss/grad_norm", "train/response_tokens", "train/reward")
        metrics = trainer.callback_metrics
        row = {name: metrics[name].item().hex() for name in names if name in metrics}
        if trainer.is_global_zero:
            with Path(self.path).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": trainer.global_step, "samples": self.ids, **row}) + "\n")


class KillsLastProcess(Callback):
    """Kills the last process of a run with SIGKILL while it samples, and writes down when.

    Args:
        step: Within this step, counted from 0; −1 for never.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *rest: Any) -> None:
        if trainer.global_step != self.step or trainer.global_rank != trainer.world_size - 1:
            return
        folder = next(Path(c.path).parent for c in trainer.callbacks if isinstance(c, StepRecorder))  # type: ignore[attr-defined]

        def die(*arguments: Any) -> None:
            (folder / "killed").write_text(str(time.time()), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)

        pl_module.scorer.experience = die
