"""When a module's parts start and end: the answerer once its weights are in place, an evaluation for each loop."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from pixelthink.callbacks.results_writer import ResultsWriter
from pixelthink.callbacks.weight_sync import RolloutWeightSync
from pixelthink.errors import MissingFileError, UserError
from pixelthink.evaluation.interface import SegmentationModule
from pixelthink.evaluation.result_folder import ResultFolder
from pixelthink.evaluation.run_header import deviations, run_config, run_header, run_settings
from pixelthink.files.checkpoints import newest_whole
from pixelthink.rollouts.synced_engine import SyncConfig

AnyCallback = TypeVar("AnyCallback", bound=Callback)


class Lifecycle(Callback):
    """Starts and ends what a `SegmentationModule` holds; each module brings its own (`configure_callbacks`).

    Args:
        module: The module.
    """

    def __init__(self, module: SegmentationModule) -> None:
        self.module = module
        self._serving = ExitStack()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses data in other coordinates than the policy's, and a last checkpoint that is not there."""
        backbone = self.module.answerer.backbone
        coordinates = getattr(getattr(trainer, "datamodule", None), "coordinates", backbone.convention)
        if coordinates != backbone.convention:
            raise UserError(
                f"data.coordinates is {coordinates!r} but {type(backbone).__name__} answers in {backbone.convention!r}"
            )
        self._check_last_checkpoint(trainer, stage)

    def _check_last_checkpoint(self, trainer: L.Trainer, stage: str) -> None:
        """Where `--ckpt_path last` finds no checkpoint, a training says that it begins; anything else is refused.

        So one command serves a job's first start and every restart, and no untrained policy is evaluated by mistake.
        A training is refused too where other checkpoints are there, since it would leave them behind.
        """
        if run_config(trainer).get("ckpt_path") != "last":
            return
        folders = [str(f) for saver in trainer.checkpoint_callbacks if (f := getattr(saver, "dirpath", None))]
        if any("://" in folder or any(Path(folder).glob("last*.ckpt")) for folder in folders):
            return
        missing = (
            f"--ckpt_path last: there is no last checkpoint in {' or '.join(folders) or 'the folder of any callback'}"
        )
        others = [found for folder in folders if (found := newest_whole(Path(folder))) is not None]
        if others:
            raise MissingFileError(f"{missing}, but there is {others[0]}: name it (--ckpt_path {others[0]}) or move it")
        if stage != "fit":
            raise MissingFileError(f"{missing}; name the file, or leave the option out to take the policy as it is")
        self.module.print(f"pixelthink: {missing} yet, so this training begins at its beginning")

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        reopen_epoch(checkpoint)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.module.evaluator.abandon()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer, "validate")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer, "test")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer, "predict")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish(trainer, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish(trainer, "test")

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._serving.close()
        self.module.evaluator.finish_predictions(self._header(trainer))
        self._tell_where(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.module.answerer.engine.sleep()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.module.answerer.engine.sleep()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.module.answerer.engine.sleep()

    def _start(self, trainer: L.Trainer) -> None:
        """Starts engine and segmenter, once the weights are where they belong, a checkpoint's included."""
        module = self.module
        assert module.policy is not None
        sync = _callback(trainer, RolloutWeightSync)
        config = SyncConfig() if sync is None else sync.config
        module.answerer.start(module.policy, str(module.device), config, lambda: module.global_step)

    def _begin(self, trainer: L.Trainer, stage: str) -> None:
        """Begins an evaluation. Processes may have different numbers of batches, so the engine serves them all."""
        self._start(trainer)
        module = self.module
        assert module.policy is not None
        results = _results(trainer)
        settings: dict[str, Any] = {}
        if results is not None:
            settings = run_settings(trainer, module.answerer, module.policy, module.evaluator.config, stage)
        fitting = trainer.state.fn == TrainerFn.FITTING
        config = module.evaluator.config
        found = deviations(trainer, module.answerer, config) if stage != "predict" and not fitting else []
        if found:
            module.print(f"not as protocol {config.protocol} has it: {'; '.join(found)}")
        module.evaluator.begin(
            results,
            settings,
            judging=not fitting and stage != "predict",
            device=str(module.device),
        )
        if results is not None and results.known:
            known = len(results.known)
            module.print(f"{results.path}: {known} samples were answered before this run was interrupted")
        self._serving.enter_context(module.answerer.engine.serving())

    def _finish(self, trainer: L.Trainer, prefix: str) -> None:
        """Computes the metrics of all processes' samples and sends them to loggers, progress bar and terminal."""
        self._serving.close()
        module = self.module
        evaluation = module.evaluator.finish(self._header(trainer))
        module.log_dict({f"{prefix}/{name}": value for name, value in evaluation.curves.items()})
        module.log("gIoU", evaluation.metrics["giou"], prog_bar=True, logger=False)
        if trainer.state.fn != TrainerFn.FITTING:
            module.print(evaluation.headline)
            self._tell_where(trainer)

    def _header(self, trainer: L.Trainer) -> dict[str, Any]:
        return run_header(trainer, self.module.answerer, self.module.evaluator.config, self.module.device)

    def _tell_where(self, trainer: L.Trainer) -> None:
        if (results := _results(trainer)) is not None:
            self.module.print(f"results: {results.path}")


def reopen_epoch(checkpoint: dict[str, Any]) -> None:
    """Lets a training go on in the epoch in which `max_steps` ended it.

    Lightning counts such an epoch as completed, so that a run of one epoch would have nothing left to train.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop")
    if loops is None:
        return
    batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    if batches["is_last_batch"] or not 0 < epochs["current"]["ready"] == epochs["current"]["processed"]:
        return
    for counts in (epochs["current"], epochs["total"]):
        counts["completed"] = min(counts["completed"], counts["ready"] - 1)
        counts["processed"] = counts["ready"] - 1


def _results(trainer: L.Trainer) -> ResultFolder | None:
    """The folder of the run's `ResultsWriter`; none in a training's validations."""
    writer = None if trainer.state.fn == TrainerFn.FITTING else _callback(trainer, ResultsWriter)
    return None if writer is None else writer.folder


def _callback(trainer: L.Trainer, kind: type[AnyCallback]) -> AnyCallback | None:
    """The trainer's callback of a kind."""
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]
