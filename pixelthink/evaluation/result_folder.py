"""The result files of one evaluation: rows batch by batch while it runs, whole files at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixelthink.errors import FileError, UserError
from pixelthink.evaluation.finished_run import read_run
from pixelthink.evaluation.journal import Journal
from pixelthink.evaluation.report.page import REPORT, write_report
from pixelthink.evaluation.results import METRICS, RUN, SAMPLES, Row, sample_row, write_document
from pixelthink.evaluation.thumbnails import remove_unused_thumbnails, save_thumbnail
from pixelthink.files.jsonl import write_rows_atomically
from pixelthink.metrics.measured import Measured
from pixelthink.parallel.collectives import all_gather_object, broadcast_object, process_rank
from pixelthink.types import Prediction


class ResultFolder:
    """Writes `run.json`, `samples.jsonl`, `metrics.json`, thumbnails and `report.html`; see `docs/evaluation.md`.

    Args:
        path: Folder to write to; made where it is missing. Earlier results there stay until the new ones are whole.
        thumbnail_side: Longer side in pixels of the small copies of the images; 0 saves none.
        report: Write the page `report.html` too.

    Raises:
        UserError: a negative `thumbnail_side`.
    """

    def __init__(self, path: str | Path, thumbnail_side: int = 640, report: bool = True) -> None:
        if thumbnail_side < 0:
            raise UserError(f"ResultsWriter: thumbnail_side must not be negative, got {thumbnail_side}")
        self.path = Path(path)
        self.thumbnail_side = thumbnail_side
        self.report = report
        self.known: Mapping[str, Row] = {}
        """Rows that an interrupted run has left here, by sample id."""
        self._rows: list[Row] = []

    def open(self, settings: Mapping[str, Any]) -> None:
        """Takes up what an interrupted run has left, and makes ready for rows to come. All processes call it together.

        Raises:
            UserError: the folder holds an unfinished evaluation under other settings.
            FileError: the folder cannot be written.
        """
        self._settings = settings
        self._journal = Journal(self.path, settings, process_rank())
        self._rows = []
        with self._naming_the_folder():
            self.known = broadcast_object(self._journal.read() if process_rank() == 0 else {})
            self._journal.start()

    def add(self, predictions: Sequence[Prediction], measured: Mapping[str, Measured]) -> None:
        """Keeps the rows of a batch; they are on the disk when this returns.

        Raises:
            FileError: they cannot be written.
        """
        with self._naming_the_folder():
            rows = [self._row(prediction, measured.get(prediction.prompt.sample.id)) for prediction in predictions]
            self._journal.append([row for row in rows if row != self.known.get(row["id"])])
        self._rows += rows

    def _row(self, prediction: Prediction, measured: Measured | None) -> Row:
        sample = prediction.prompt.sample
        thumbnail = self.known.get(sample.id, {}).get("thumbnail")
        if thumbnail is None and self.thumbnail_side and sample.missing is None:
            thumbnail = save_thumbnail(sample.image, self.path, self.thumbnail_side)
        return sample_row(prediction, measured, thumbnail)

    def finish(
        self, measured: Mapping[str, Measured], header: Mapping[str, Any], metrics: Mapping[str, Any] | None
    ) -> None:
        """Writes the files from all processes' rows in the source's order. All processes call it together.

        Args:
            measured: Of this process's samples, with what a judge has added since their rows were written.
            header: The contents of `run.json` beside the settings.
            metrics: The contents of `metrics.json`; None after a prediction.

        Raises:
            FileError: a file cannot be written.
        """
        rated = [row | _rating(measured.get(row["id"])) for row in self._rows]
        rows = [row for part in all_gather_object(rated) for row in part]
        rows.sort(key=lambda row: -1 if row["index"] is None else row["index"])
        self._rows, self.known = [], {}
        if process_rank():
            return
        with self._naming_the_folder():
            write_rows_atomically(self.path / SAMPLES, rows)
            write_document(self.path / RUN, {**self._settings, **header})
            if metrics is None:
                (self.path / METRICS).unlink(missing_ok=True)  # of an earlier evaluation
            else:
                write_document(self.path / METRICS, metrics)
            remove_unused_thumbnails(self.path, {row["thumbnail"] for row in rows if row["thumbnail"]})
            if self.report:
                write_report(self.path / REPORT, read_run(self.path))
            self._journal.remove()  # last: until then a full disk costs nothing

    @contextmanager
    def _naming_the_folder(self) -> Iterator[None]:
        """Names the folder in the error of a disk that is full, or not there."""
        try:
            yield
        except OSError as error:
            raise FileError(f"results cannot be written to {self.path}: {error.strerror or error}") from error


def _rating(measured: Measured | None) -> Row:
    """What a judge has added to a row since its batch."""
    if measured is None:
        return {}
    return {name: getattr(measured, name) for name in ("rscore", "judge_failure", "judge_detail")}
