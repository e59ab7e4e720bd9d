"""SIGTERM and Ctrl-C end a run after its step, with a checkpoint and an exit status that says so.

Schedulers send SIGTERM before they kill. Lightning ends a run then with status 0 and without a checkpoint. Its handler
for SLURM's requeue signal is left in place: it saves and requeues, and the SIGTERM that follows ends the run as here.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn

from pixelthink.callbacks.results_writer import ResultsWriter

STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}
"""Exit status by signal: 128 + its number, as shells have it."""


class GracefulStop(Callback):
    """Ends a run early when it is told to. `python -m pixelthink` adds it to each run.

    `fit` finishes the step (or the validation) that it is in, writes the last checkpoint and ends; several processes
    agree on the step. `validate`, `test` and `predict` finish their batch; the rows of all batches are on the disk. A
    second Ctrl-C ends at once. The status is 143 after SIGTERM and 130 after Ctrl-C.

    It stands behind the configuration's callbacks, so that the checkpoint has what they keep of the last step.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._trainer: Trainer | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        """Ends a training after its step, where any process has been told to."""
        if trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            self._end(trainer, self._checkpoint(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a training after a validation."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.on_train_batch_end(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        self._end_evaluation(trainer)

    def on_test_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        self._end_evaluation(trainer)

    def on_predict_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        self._end_evaluation(trainer)

    def _end_evaluation(self, trainer: Trainer) -> None:
        """Ends an evaluation after its batch; each process for itself: they may have different numbers of them."""
        if self.received is not None and trainer.state.fn != TrainerFn.FITTING:
            self._end(trainer, _kept_rows(trainer))

    def _listen(self, trainer: Trainer) -> None:
        """Takes over the signals, once Lightning has set its own handlers."""
        if self._trainer is None and threading.current_thread() is threading.main_thread():
            self._trainer = trainer
            signal.signal(signal.SIGTERM, self._remember)
            signal.signal(signal.SIGINT, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        """Keeps the signal until the step or batch is over."""
        if self.received == signal.SIGINT == number:
            raise SystemExit(STATUS[signal.SIGINT])
        repeated, self.received = self.received is not None, signal.Signals(number)
        assert self._trainer is not None
        launcher: Any = self._trainer.strategy.launcher
        if number == signal.SIGTERM and not repeated and hasattr(launcher, "kill"):
            launcher.kill(number)  # processes that Lightning started get no signal of the scheduler's
        if not repeated and self._trainer.is_global_zero:
            part = "step" if self._trainer.training else "batch"
            again = "; once more ends it at once" if number == signal.SIGINT else ""
            text = f"pixelthink: {self.received.name}: the run ends after this {part}{again}\n"
            os.write(2, text.encode())  # print is not safe in a signal handler

    def _checkpoint(self, trainer: Trainer) -> str:
        """Writes the last checkpoint; says what there is to go on from."""
        folder = next((c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        if folder is None:
            return "no ModelCheckpoint has a folder, so nothing of this training is kept"
        path = Path(folder) / f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}{ModelCheckpoint.FILE_EXTENSION}"
        trainer.save_checkpoint(path)
        return f"{path} is written; the same command with --ckpt_path last goes on"

    def _end(self, trainer: Trainer, what_is_kept: str) -> None:
        received = self.received or signal.SIGTERM  # another process was told
        if trainer.is_global_zero:
            where = f" after step {trainer.global_step}" if trainer.state.fn == TrainerFn.FITTING else ""
            print(f"pixelthink: ended by {received.name}{where}: {what_is_kept}", file=sys.stderr, flush=True)
        raise SystemExit(0 if _is_started_by_lightning(trainer.strategy) else STATUS[received])


def _kept_rows(trainer: Trainer) -> str:
    """What there is to go on from after an evaluation."""
    writer = next((c for c in trainer.callbacks if isinstance(c, ResultsWriter)), None)  # type: ignore[attr-defined]
    if writer is None:
        return "without a ResultsWriter no rows are kept"
    old = " (metrics.json there is of an earlier run)" if (writer.folder.path / "metrics.json").exists() else ""
    return f"the rows so far are in {writer.folder.path}{old}; the same command goes on"


def _is_started_by_lightning(strategy: Strategy) -> bool:
    """Whether Lightning's first process watches this one, and would kill the run at a status other than 0."""
    environment = getattr(strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and environment.local_rank() > 0
