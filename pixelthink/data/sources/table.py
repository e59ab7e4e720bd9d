"""Tables of samples as they are published: Parquet files, `save_to_disk` folders, and datasets of the Hugging Face hub.

Rows are read one at a time from a memory map that `datasets` keeps, so memory does not grow with the table.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pixelthink.data.base import BadRow, RowSource
from pixelthink.data.difficulty import DifficultyFaults
from pixelthink.data.images import ImageOpener, Size
from pixelthink.data.reading import duplicates
from pixelthink.errors import FileError, MissingFileError
from pixelthink.files.jsonl import row_error
from pixelthink.types import Sample

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

HUB = "hf://"
"""What stands before the id of a dataset of the hub."""

SPLITS = ("train", "val", "validation", "test")


def open_table(path: str, split: str) -> datasets.Dataset:
    """Opens a table; its rows come in Arrow format, see `read_row`.

    Args:
        path: A `.parquet` or `.arrow` file, a folder of them (of the split's, where their names say so), a folder
            written by `save_to_disk`, or `hf://OWNER/NAME`, a dataset of the hub. A path without `hf://` is never
            looked for on the hub.
        split: "train", "val", "test", …

    Raises:
        MissingFileError: nothing is there; one line that names the path.
        FileError: it cannot be read; one line that names the path.
    """
    import datasets

    local = Path(path)
    if not path.startswith(HUB) and not local.exists():
        raise MissingFileError(
            f"{path}: there is no such file or folder; `python tools/get_data.py` fetches published sets, and a "
            f"dataset of the hub is named by {HUB}OWNER/NAME"
        )
    try:
        if (local / "dataset_dict.json").is_file():
            table = datasets.DatasetDict.load_from_disk(path)[split]
        elif (local / "state.json").is_file():
            table = datasets.Dataset.load_from_disk(path)
        elif path.startswith(HUB):
            table = datasets.load_dataset(path.removeprefix(HUB).removeprefix("datasets/"), split=split)
        else:
            files = [str(file) for file in ([local] if local.is_file() else _files_of(local, split))]
            builder = "arrow" if files[0].endswith(".arrow") else "parquet"
            table = datasets.load_dataset(builder, data_files=files, split="train")
        return table.with_format("arrow")
    except Exception as error:  # the layers below raise many kinds
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise FileError(f"{path}: cannot be read as a table: {reason}") from None


def read_row(table: datasets.Dataset, index: int) -> dict[str, Any]:
    """Row `index` as plain values; a list of lists of booleans, that is a mask, is a bool array (H, W)."""
    row = table[index : index + 1]
    return {name: _plain(row.column(name).chunk(0)) for name in row.column_names}


def read_texts(table: datasets.Dataset, column: str) -> list[str]:
    """One column as text."""
    return [str(value) for value in table.select_columns([column])[:].column(0).to_pylist()]


def read_image(value: Any, owner: str, open_image: ImageOpener, size: Size | None = None) -> Image.Image:
    """The image of a table's cell: a file's bytes, a path, or `{"bytes": …, "path": …}`; `size` as in `open_rgb`.

    Raises:
        FileError: the cell holds none of these, or no readable image; begins with `owner`.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | str):
        return open_image(value, f"{owner}: image" if isinstance(value, bytes) else None, size)
    raise FileError(f"{owner}: image must be bytes, a path or {{bytes, path}}, got {type(value).__name__}")


@dataclass(frozen=True)
class TableRow:
    """Id of a row and its position in the table."""

    id: str
    index: int


class TableSource(RowSource[TableRow]):
    """Samples that are rows of a table, one each; errors name the table and the row, counted from 0.

    Args:
        path: Parquet file, folder of them, `save_to_disk` folder, or `hf://OWNER/NAME` on the hub, e.g.
            "hf://Ricky06662/ReasonSeg_test".
        split: Split to read.
        difficulty_file: JSON list of `{"image_id": id, "difficulty_score_model": 1…10}`; without it samples have no
            difficulty, with it each needs one.
        difficulty: What to do with samples for which the file has no usable rating.
    """

    columns: tuple[str, ...]
    """Columns that the table must have."""

    def __init__(
        self,
        path: str,
        split: str,
        difficulty_file: str | None = None,
        difficulty: DifficultyFaults = DifficultyFaults(),
    ) -> None:
        self.path = path
        self.split = split
        self.difficulty_file = difficulty_file
        self.difficulty = difficulty
        self._table: datasets.Dataset | None = None

    @abstractmethod
    def read_ids(self, table: datasets.Dataset) -> list[str]:
        """The samples' ids, in order."""

    @abstractmethod
    def read_sample(self, row: dict[str, Any], name: str, open_image: ImageOpener) -> Sample:
        """The sample of a row; ValueError where it cannot be used."""

    def read_rows(self) -> Sequence[TableRow | BadRow]:
        table = open_table(self.path, self.split)
        if missing := [name for name in self.columns if name not in table.column_names]:
            raise FileError(f"{self.path}: no column {', '.join(missing)}; there are {', '.join(table.column_names)}")
        ids = self.read_ids(table)
        self._table = table
        rows: list[TableRow | BadRow] = [TableRow(name, index) for index, name in enumerate(ids)]
        for index, first in duplicates(ids).items():
            error = row_error(self.path, index, f"id {ids[index]!r} occurs already in row {first}")
            rows[index] = BadRow(ids[index], str(error))
        return rows

    def make_sample(self, row: TableRow, open_image: ImageOpener) -> Sample:
        try:
            return self.read_sample(read_row(self._table, row.index), row.id, open_image)
        except ValueError as error:
            raise row_error(self.path, row.index, error) from None


def _files_of(folder: Path, split: str) -> list[Path]:
    """The folder's table files; those of the split where any name begins with a split, as on the hub."""
    files = sorted(f for f in folder.rglob("*") if f.suffix in (".parquet", ".arrow"))
    if not files:
        raise FileError("the folder holds no .parquet or .arrow file")
    if len({f.suffix for f in files}) > 1:
        raise FileError("the folder holds both .parquet and .arrow files; name the one to read")
    named = [f for f in files if f.name.startswith(tuple(f"{s}{end}" for s in SPLITS for end in "-."))]
    mine = [f for f in named if f.name.startswith((f"{split}-", f"{split}."))]
    if named and not mine:
        raise FileError(f"no file of split {split!r} among {', '.join(f.name for f in named[:5])}")
    return mine or files


def _plain(cell: pa.Array) -> Any:
    """The only value of a column of one row."""
    import pyarrow as pa

    if _is_list(cell.type) and _is_list(cell.type.value_type) and pa.types.is_boolean(cell.type.value_type.value_type):
        rows = cell.flatten()
        lengths = set(rows.value_lengths().to_pylist())
        if len(lengths) == 1 and rows.null_count == 0:
            return np.asarray(rows.flatten().to_numpy(zero_copy_only=False), dtype=bool).reshape(len(rows), -1)
    return cell.to_pylist()[0]


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind)
