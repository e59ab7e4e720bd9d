"""Data sets in the checked format, see `pixelthink.data.checked_format`."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from pixelthink.data.base import ImageSource
from pixelthink.data.checked_format import MANIFEST, ROW_GROUP, VERSION, check_schema, read_manifest, row_to_sample
from pixelthink.data.difficulty import DifficultyFaults, difficulties_for
from pixelthink.data.images import ImageOpener
from pixelthink.data.reading import duplicates
from pixelthink.data.validation import ObjectTargets, check_sample
from pixelthink.errors import FileError, MissingFileError
from pixelthink.files.jsonl import row_error
from pixelthink.types import Sample

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


class Checked(ImageSource):
    """Samples in the checked format, as `tools/prepare_data.py` writes it; memory does not grow with their number.

    Args:
        path: The folder.
        difficulty_file: JSON list of `{"image_id": id, "difficulty_score_model": 1…10}`, which takes the place of the
            difficulties in the data set; each sample needs one.
        difficulty: What to do with samples for which the file has no usable rating.
    """

    def __init__(
        self, path: str, difficulty_file: str | None = None, difficulty: DifficultyFaults = DifficultyFaults()
    ) -> None:
        self.path = path
        self.difficulty_file = difficulty_file
        self.difficulty = difficulty
        self._difficulties: dict[str, float] = {}
        self._kept: np.ndarray | None = None  # rows that have a usable difficulty, where the others are dropped
        self._parts: list[Path] = []
        self._version = VERSION
        self._ends: list[int] = []
        self._open: tuple[int, pq.ParquetFile] | None = None  # one, for each holds its metadata in memory
        self._group: tuple[int, int, pa.Table] | None = None
        self._owner = 0

    def setup(self) -> None:
        """Reads the list of parts.

        Raises:
            FileError: no such data set, of another version, or with a part missing; one line that names the file.
        """
        if self._parts:
            return
        folder = Path(self.path)
        self._version, rows = read_manifest(folder)
        parts = [folder / name for name in rows]
        for part in parts:
            if not part.is_file():
                raise MissingFileError(f"{part}: the part is missing, though {MANIFEST} lists it")
        self._ends = list(accumulate(rows.values()))
        if not sum(rows.values()):
            raise FileError(f"{folder}: the data set has no rows")
        self._parts = parts
        if self.difficulty_file is not None or self.difficulty.on_fault != "error":
            ids = self.ids()
            self._difficulties = difficulties_for(self.difficulty_file, ids, self.difficulty)
            if self.difficulty.on_fault == "drop":
                self._kept = np.flatnonzero([name in self._difficulties for name in ids])
        if self._version == 1:
            rank_zero_info(f"{folder}: version 1 names no objects, so each sample counts as an object of its own")

    def __len__(self) -> int:
        if not self._parts:
            raise RuntimeError("call setup() before reading samples")
        return self._ends[-1] if self._kept is None else len(self._kept)

    def read(self, index: int, open_image: ImageOpener) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} rows, there is no number {index}")
        if self._kept is not None:
            index = int(self._kept[index])
        part = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[part - 1] if part else 0)
        try:
            sample = row_to_sample(self._read(part, row), open_image)
        except (ValueError, OSError) as error:
            raise row_error(self._parts[part], row, error) from None
        return replace(sample, difficulty=self._difficulties.get(sample.id, sample.difficulty))

    def ids(self) -> list[str]:
        import pyarrow.parquet as pq

        len(self)
        names: list[str] = []
        for part in self._parts:
            try:
                names += pq.read_table(part, columns=["id"])["id"].to_pylist()
            except (ValueError, KeyError, OSError) as error:
                raise FileError(f"{part}: not a part of the checked format: {' '.join(str(error).split())}") from None
        return names if self._kept is None else [names[index] for index in self._kept]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": None, "_group": None}

    def _read(self, part: int, row: int) -> dict[str, Any]:
        """One row, through the newest row group."""
        if self._owner != os.getpid():  # a dataloader worker: files that its parent opened are not its own
            self._owner, self._open, self._group = os.getpid(), None, None
        number = row // ROW_GROUP
        if self._group is None or self._group[:2] != (part, number):
            table = self._file(part).read_row_group(number, use_threads=False)
            self._group = (part, number, table)
        rows = self._group[2].slice(row % ROW_GROUP, 1).to_pylist()
        if not rows:
            raise FileError(f"there is no such row, though {MANIFEST} counts it")
        return rows[0]

    def _file(self, part: int) -> pq.ParquetFile:
        import pyarrow.parquet as pq

        if self._open is None or self._open[0] != part:
            if self._open is not None:
                self._open[1].close()
                self._open = None
            file = pq.ParquetFile(self._parts[part], pre_buffer=False)
            check_schema(file, self._parts[part], self._version)
            self._open = (part, file)
        return self._open[1]


def validate(path: str) -> Iterator[str]:
    """Checks every row of a data set in the checked format, and that all rows of an object have one target.

    Yields:
        One line for each thing that is wrong.
    """
    source = Checked(path)
    try:
        source.setup()
        ids = source.ids()
    except (ValueError, OSError) as error:
        yield " ".join(str(error).split())
        return
    double = duplicates(ids)
    targets = ObjectTargets()
    for index, name in enumerate(ids):
        if index in double:
            yield f"{path}: row {index}: id {name!r} occurs already in row {double[index]}"
        try:
            targets.add(check_sample(source[index]))
        except ValueError as error:
            yield str(error)
