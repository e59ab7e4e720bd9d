"""What sources over a published table share: opening it, ids, difficulties, and errors that name the row."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from pixelthink.data.base import SampleSource
from pixelthink.data.difficulty import difficulties_for
from pixelthink.data.files import duplicates
from pixelthink.data.tables import Table, cell_error, open_table
from pixelthink.types import Sample


class TableSource(SampleSource):
    """Samples that are rows of a table, one each.

    Args:
        path: Parquet file, folder of them, `save_to_disk` folder, or hub id.
        split: Split to read.
        difficulty_file: JSON list of `{"image_id": …, "difficulty_score_model": 1…10}`; without it samples have no
            difficulty, with it each needs one.
    """

    columns: tuple[str, ...]
    """Columns that the table must have."""

    def __init__(self, path: str, split: str, difficulty_file: str | None = None) -> None:
        self.path = path
        self.split = split
        self.difficulty_file = difficulty_file
        self._table: Table | None = None
        self._ids: list[str] = []
        self._duplicates: dict[int, int] = {}
        self._difficulties: dict[str, float] | None = None

    @abstractmethod
    def read_ids(self, table: Table) -> list[str]:
        """The samples' ids, in order."""

    @abstractmethod
    def read_sample(self, row: dict[str, Any], name: str, difficulty: float | None) -> Sample:
        """The sample of a row; ValueError where it cannot be used."""

    def setup(self) -> None:
        """Opens the table and reads ids and difficulties.

        Raises:
            ValueError: no such table, a column or difficulties missing; one line that names the file.
        """
        if self._table is not None:
            return
        table = open_table(self.path, self.split)
        table.require(self.columns)
        self._ids = self.read_ids(table)
        self._duplicates = duplicates(self._ids)
        if self.difficulty_file is not None:
            self._difficulties = difficulties_for(self.difficulty_file, self._ids)
        self._table = table

    def __len__(self) -> int:
        return len(self._opened())

    def __getitem__(self, index: int) -> Sample:
        table = self._opened()
        if not 0 <= index < len(table):
            raise IndexError(f"{table.name} has {len(table)} rows, there is no number {index}")
        name = self._ids[index]
        try:
            if index in self._duplicates:
                raise ValueError(f"id {name!r} occurs already in row {self._duplicates[index]}")
            difficulty = None if self._difficulties is None else self._difficulties[name]
            return self.read_sample(table.row(index), name, difficulty)
        except ValueError as error:
            raise cell_error(table, index, error) from None

    def ids(self) -> list[str]:
        self._opened()
        return self._ids

    def _opened(self) -> Table:
        if self._table is None:
            raise RuntimeError("call setup() before reading samples")
        return self._table
