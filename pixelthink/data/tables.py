"""Tables of samples as they are published: Parquet files, `save_to_disk` folders, and datasets of the Hugging Face hub.

Rows are read one at a time from a memory map that `datasets` keeps, so memory does not grow with the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pixelthink.data.images import open_rgb
from pixelthink.files.jsonl import row_error

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

SPLITS = ("train", "val", "validation", "test")


class Table:
    """Rows of a table, read as they are asked for.

    Args:
        data: The rows.
        name: What errors call the table.
    """

    def __init__(self, data: datasets.Dataset, name: str) -> None:
        self._rows = data.with_format("arrow")
        self.name = name
        self.columns: tuple[str, ...] = tuple(data.column_names)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> dict[str, Any]:
        """Row `index` as plain values; a list of lists of booleans, that is a mask, is a bool array (H, W)."""
        table = self._rows[index : index + 1]
        return {name: _plain(table.column(name).chunk(0)) for name in table.column_names}

    def texts(self, column: str) -> list[str]:
        """One column as text."""
        return [str(value) for value in self._rows.select_columns([column])[:].column(0).to_pylist()]

    def require(self, columns: Sequence[str]) -> None:
        """Raises ValueError, naming what is missing and what is there, unless the table has all of these columns."""
        if missing := [name for name in columns if name not in self.columns]:
            raise ValueError(f"{self.name}: no column {', '.join(missing)}; there are {', '.join(self.columns)}")


def open_table(path: str, split: str) -> Table:
    """Opens a table.

    Args:
        path: A `.parquet` or `.arrow` file, a folder of them (of the split's, where their names say so), a folder
            written by `save_to_disk`, or a dataset id on the hub.
        split: "train", "val", "test", …

    Raises:
        ValueError: nothing is there, or it cannot be read; one line that names the path.
    """
    import datasets

    local = Path(path)
    try:
        if (local / "dataset_dict.json").is_file():
            return Table(datasets.DatasetDict.load_from_disk(path)[split], path)
        if (local / "state.json").is_file():
            return Table(datasets.Dataset.load_from_disk(path), path)
        if not local.exists():
            if path.count("/") != 1 or path.startswith((".", "/", "~")):
                raise ValueError("there is no such file or folder")
            return Table(datasets.load_dataset(path, split=split), path)
        files = [local] if local.is_file() else _files_of(local, split)
        builder = "arrow" if files[0].suffix == ".arrow" else "parquet"
        names = [str(file) for file in files]
        return Table(datasets.load_dataset(builder, data_files=names, split="train"), path)
    except Exception as error:  # whatever the many layers below run into
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise ValueError(f"{path}: cannot be read as a table: {reason}") from None


def read_image(value: Any, owner: str, size: tuple[int, int] | None = None) -> Image.Image:
    """The image of a table's cell: a file's bytes, a path, or `{"bytes": …, "path": …}`; `size` as in `open_rgb`.

    Raises:
        ValueError: the cell holds none of these, or no readable image; begins with `owner`.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | str):
        return open_rgb(value, f"{owner}: image" if isinstance(value, bytes) else None, size)
    raise ValueError(f"{owner}: image must be bytes, a path or {{bytes, path}}, got {type(value).__name__}")


def cell_error(table: Table, index: int, message: object) -> ValueError:
    """An error of one row: `TABLE:ROW: message`, rows counted from 0 as `datasets` does."""
    return row_error(table.name, index, message)


def _files_of(folder: Path, split: str) -> list[Path]:
    """The folder's table files; those of the split where any name begins with a split, as on the hub."""
    files = sorted(f for f in folder.rglob("*") if f.suffix in (".parquet", ".arrow"))
    if not files:
        raise ValueError("the folder holds no .parquet or .arrow file")
    if len({f.suffix for f in files}) > 1:
        raise ValueError("the folder holds both .parquet and .arrow files; name the one to read")
    named = [f for f in files if f.name.startswith(tuple(f"{s}{end}" for s in SPLITS for end in "-."))]
    mine = [f for f in named if f.name.startswith((f"{split}-", f"{split}."))]
    if named and not mine:
        raise ValueError(f"no file of split {split!r} among {', '.join(f.name for f in named[:5])}")
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
