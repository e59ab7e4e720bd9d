"""A finished evaluation or prediction, read from its folder with everything that readers rely on checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixelthink.errors import UserError
from pixelthink.evaluation.results import METRICS, RUN, SAMPLES, Row, read_document
from pixelthink.files.jsonl import read_rows, row_error
from pixelthink.geometry import decode_rle

NEEDED = ("id", "question", "level", "response", "failure", "prediction", "target", "iou", "reasoning_tokens")
"""Keys without which a row is none of an evaluation's; the others are looked at where they are there."""


@dataclass(frozen=True)
class FinishedRun:
    """What `ResultsWriter` left in a folder.

    Attributes:
        folder: Where it lies.
        rows: Of `samples.jsonl`, in order.
        header: `run.json`.
        metrics: `metrics.json`; empty after a prediction.
    """

    folder: Path
    rows: list[Row]
    header: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name


def row_mask(row: Row, key: str) -> np.ndarray | None:
    """A row's mask under a key, bool (H, W); None where there is none.

    Raises:
        UserError: it cannot be read; names sample and key.
    """
    if row.get(key) is None:
        return None
    try:
        return decode_rle(row[key])
    except ValueError as error:
        raise UserError(f"sample {row['id']!r}: {key}: {error}") from None


def read_run(folder: str | Path) -> FinishedRun:
    """Reads the results in a folder.

    Raises:
        UserError: no such folder, an unfinished run, a file that is missing or not of the form; one line.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder")
    if not (path / SAMPLES).is_file():
        parts = sorted(path.glob("samples.part-*.jsonl"))
        why = "the run is not finished; the same command goes on with it" if parts else "ResultsWriter writes one"
        raise UserError(f"{path}: there is no {SAMPLES} ({why})")
    rows: list[Row] = []
    first_row: dict[str, int] = {}
    for number, row in read_rows(path / SAMPLES):
        if missing := [key for key in NEEDED if key not in row]:
            raise row_error(path / SAMPLES, number, f"no {missing[0]!r}, so it is no row of an evaluation")
        if (earlier := first_row.setdefault(row["id"], number)) != number:
            raise row_error(path / SAMPLES, number, f"id {row['id']!r} occurs already in row {earlier}")
        rows.append(row)
    if not rows:
        raise UserError(f"{path / SAMPLES}: no rows")
    header = read_document(path, RUN) if (path / RUN).is_file() else {}
    metrics = read_document(path, METRICS) if (path / METRICS).is_file() else {}
    return FinishedRun(path, rows, header, metrics)
