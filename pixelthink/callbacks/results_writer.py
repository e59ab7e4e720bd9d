"""Writes what an evaluation or a prediction found, batch by batch, so that a run may be killed and go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from pixelthink.evaluation.finished_run import read_run
from pixelthink.evaluation.journal import Journal
from pixelthink.evaluation.policy_module import PolicyModule
from pixelthink.evaluation.report.page import REPORT, write_report
from pixelthink.evaluation.results import METRICS, RUN, SAMPLES, Row, sample_row, write_document
from pixelthink.evaluation.run_header import run_header, run_settings
from pixelthink.evaluation.thumbnails import remove_unused_thumbnails, save_thumbnail
from pixelthink.files.jsonl import write_rows_atomically
from pixelthink.metrics.measured import Measured
from pixelthink.metrics.report import metrics_document
from pixelthink.parallel.collectives import all_gather_object, broadcast_object
from pixelthink.types import Prediction


class ResultsWriter(Callback):
    """Writes `run.json`, `samples.jsonl`, `metrics.json` and thumbnails; `docs/evaluation.md` says what they hold.

    While the run is under way, each batch's rows are appended to `samples.part-RANK.jsonl`. A run that was killed is
    started again with the same command: what was answered is not answered again, and the results are those of a run
    that was not interrupted. It does nothing in `fit`.

    Args:
        path: Folder to write to; made where it is missing. Earlier results there stay until the new ones are whole.
        thumbnail_side: Longer side in pixels of the small copies of the images; 0 saves none.
        report: Write `report.html` too, a page of all this to look at, see `docs/report.md`.
    """

    def __init__(self, path: str, thumbnail_side: int = 640, report: bool = True) -> None:
        if thumbnail_side < 0:
            raise ValueError(f"ResultsWriter: thumbnail_side must not be negative, got {thumbnail_side}")
        self.path = path
        self.thumbnail_side = thumbnail_side
        self.report = report
        self._journal: Journal | None = None
        self._settings: dict[str, Any] = {}
        self._known: dict[str, Row] = {}
        self._rows: list[Row] = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._start(trainer, pl_module, "validate")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start(trainer, pl_module, "test")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start(trainer, pl_module, "predict")

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *rest: Any, **named: Any
    ) -> None:
        if self._journal is not None:
            self._add(pl_module, outputs)

    on_validation_batch_end = on_test_batch_end
    on_predict_batch_end = on_test_batch_end

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._journal is not None:
            self._finish(trainer, pl_module, self._journal)

    on_validation_end = on_test_end
    on_predict_end = on_test_end

    def _start(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Takes up what an interrupted run has left, and hands it to the module."""
        if not isinstance(module, PolicyModule):
            raise ValueError(f"ResultsWriter writes what a PolicyModule finds, not a {type(module).__name__}")
        self._settings = run_settings(trainer, module, stage)
        self._journal = Journal(self.path, self._settings, trainer.global_rank)
        with _says_where(self.path):
            self._known = broadcast_object(self._journal.read() if trainer.is_global_zero else {})
            self._journal.start()
        if self._known:
            module.print(f"{self.path}: {len(self._known)} samples were answered before this run was interrupted")
        module.recorded, self._rows = self._known, []

    def _add(self, module: L.LightningModule, predictions: list[Prediction]) -> None:
        """Keeps the rows of a batch; those that were known already are on the disk."""
        assert isinstance(module, PolicyModule)
        assert self._journal is not None
        with _says_where(self.path):
            rows = [self._row(module, prediction) for prediction in predictions]
            self._journal.append([row for row in rows if row != self._known.get(row["id"])])
        self._rows += rows

    def _row(self, module: PolicyModule, prediction: Prediction) -> Row:
        sample = prediction.prompt.sample
        thumbnail = self._known.get(sample.id, {}).get("thumbnail")
        if thumbnail is None and self.thumbnail_side and sample.missing is None:
            thumbnail = save_thumbnail(sample.image, Path(self.path), self.thumbnail_side)
        return sample_row(prediction, module.measured.get(sample.id), thumbnail)

    def _finish(self, trainer: L.Trainer, module: L.LightningModule, journal: Journal) -> None:
        """Writes the files, of all processes' rows in the source's order; then the journal has done its work."""
        assert isinstance(module, PolicyModule)
        rated = [row | _rating(module.measured.get(row["id"])) for row in self._rows]
        rows = [row for part in all_gather_object(rated) for row in part]
        rows.sort(key=lambda row: -1 if row["index"] is None else row["index"])
        self._journal, self._rows, self._known, module.recorded = None, [], {}, {}
        if not trainer.is_global_zero:
            return
        folder = Path(self.path)
        with _says_where(self.path):
            write_rows_atomically(folder / SAMPLES, rows)
            write_document(folder / RUN, run_header(trainer, module, self._settings))
            if self._settings["stage"] == "predict":
                (folder / METRICS).unlink(missing_ok=True)  # of an earlier evaluation
            else:
                write_document(folder / METRICS, self._metrics(module))
            remove_unused_thumbnails(folder, {row["thumbnail"] for row in rows if row["thumbnail"]})
            journal.remove()
            if self.report:
                write_report(folder / REPORT, read_run(folder))
        module.print(f"results: {folder}")

    def _metrics(self, module: PolicyModule) -> dict[str, Any]:
        judge = module.evaluation.judge
        judged = {} if judge is None else {"judge": {"name": type(judge).__name__, "note": judge.note}}
        return {
            "protocol": module.evaluation.protocol,
            "count": module.evaluation.count,
            **judged,
            **metrics_document(module.metrics),
        }


def _rating(measured: Measured | None) -> Row:
    """What a judge has added to a row since its batch."""
    if measured is None:
        return {}
    return {name: getattr(measured, name) for name in ("rscore", "judge_failure", "judge_detail")}


@contextmanager
def _says_where(path: str) -> Iterator[None]:
    """Names the folder in the error of a disk that is full, or not there."""
    try:
        yield
    except OSError as error:
        raise OSError(f"results cannot be written to {path}: {error.strerror or error}") from error
