"""The checked format: Parquet that holds all that is known of a sample, each row of it looked at before it was written.

A data set is a folder: `dataset.json` (format, version, rows of each part) and `part-00000.parquet`, …. A row holds

| column | content |
|---|---|
| `id`, `source`, `licence`, `query` | text; the licence may be null |
| `image` | `{bytes, path}`: an image file's bytes, or the path of one |
| `width`, `height` | of the upright image, in pixels |
| `target`, `ignore` | masks as COCO run lengths `{size: [H, W], counts}`; null where unknown, or where there is none |
| `targets` | list of `{box: [x1, y1, x2, y2], points: [x, y, x, y]}` in original pixels |
| `difficulty`, `difficulty_parts` | 1 to 10, or null; the ratings that it was made of, by name |
| `reasoning` | reference reasoning, by style |
| `meta` | whatever else the source said, as JSON |
| `object` | what the query asks for, `Sample.object_id`; null where the sample is an object of its own |

Folders of version 1, which had no `object`, are read as well.
"""

from __future__ import annotations

import bisect
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from pixelthink.data.base import SampleSource
from pixelthink.data.checks import check_sample
from pixelthink.data.difficulty import difficulties_for
from pixelthink.data.files import read_json
from pixelthink.data.images import encode_png, open_rgb
from pixelthink.data.objects import ObjectTargets
from pixelthink.files.jsonl import row_error
from pixelthink.geometry import Target, decode_rle, encode_rle
from pixelthink.types import Sample

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FORMAT = "pixelthink-checked"
VERSION = 2
READABLE = (1, VERSION)
MANIFEST = "dataset.json"
ROW_GROUP = 16
"""Rows that are read together: few, for in a shuffled epoch all but one of them are read in vain."""

ImageStorage = Literal["bytes", "path"]


def checked_schema(version: int = VERSION) -> pa.Schema:
    """Columns of a part, with format and version in the metadata."""
    import pyarrow as pa

    text, real, whole = pa.string(), pa.float64(), pa.int32()
    mask = pa.struct([("size", pa.list_(whole)), ("counts", text)])
    columns: list[tuple[str, Any]] = [
        ("id", text),
        ("source", text),
        ("licence", text),
        ("query", text),
        ("image", pa.struct([("bytes", pa.binary()), ("path", text)])),
        ("width", whole),
        ("height", whole),
        ("target", mask),
        ("ignore", mask),
        ("targets", pa.list_(pa.struct([("box", pa.list_(real)), ("points", pa.list_(real))]))),
        ("difficulty", real),
        ("difficulty_parts", pa.map_(text, real)),
        ("reasoning", pa.map_(text, text)),
        ("meta", text),
        ("object", text),
    ]
    columns = [column for column in columns if version > 1 or column[0] != "object"]
    return pa.schema(columns, metadata={"format": FORMAT, "version": str(version)})


def sample_to_row(
    sample: Sample, source: str, images: ImageStorage = "bytes", licence: str | None = None
) -> dict[str, Any]:
    """A sample as a row, checked.

    Where `sample.meta["file"]` names an image file that reads as `sample.image`, its own bytes are kept; otherwise the
    image is stored as PNG, which loses nothing.

    Args:
        sample: What to write.
        source: Name of where it came from.
        images: "bytes" puts the image into the row; "path" only says where it lies.
        licence: Licence of samples whose source states none.

    Raises:
        ValueError: the sample cannot be used, or has no file to point to; names it.
    """
    check_sample(sample)
    meta = dict(sample.meta)
    file, parts = meta.pop("file", None), meta.pop("difficulty_parts", {})
    return {
        "id": sample.id,
        "source": source,
        "licence": meta.pop("licence", licence),
        "query": sample.question,
        "image": _stored_image(sample, file, images),
        "width": sample.image.width,
        "height": sample.image.height,
        "target": None if sample.mask is None else encode_rle(sample.mask),
        "ignore": None if sample.ignore is None or not sample.ignore.any() else encode_rle(sample.ignore),
        "targets": [
            {"box": list(target.box_xyxy), "points": [value for point in target.points_xy for value in point]}
            for target in sample.targets
        ],
        "difficulty": sample.difficulty,
        "difficulty_parts": {str(name): float(value) for name, value in parts.items()},
        "reasoning": dict(sample.reasoning),
        "meta": json.dumps(meta, ensure_ascii=False, default=str),
        "object": sample.object_id,
    }


def row_to_sample(row: Mapping[str, Any]) -> Sample:
    """The sample of a row.

    Raises:
        ValueError: an image or a mask that cannot be read, or that has another size than the row says.
    """
    stored = row["image"] or {}
    data, path = stored.get("bytes"), stored.get("path")
    size = row["width"], row["height"]
    if data is not None:
        image = open_rgb(data, f"image of {row['id']!r}", size)
    elif path is not None:
        image = open_rgb(path, size=size)
    else:
        raise ValueError("there is neither an image nor a path to one")
    if image.size != size:
        raise ValueError(f"the image is {image.width} × {image.height}, the row says {row['width']} × {row['height']}")
    meta = json.loads(row["meta"]) | {"source": row["source"]}
    if row["licence"] is not None:
        meta["licence"] = row["licence"]
    if parts := dict(row["difficulty_parts"]):
        meta["difficulty_parts"] = parts
    if data is None:
        meta["file"] = path
    return Sample(
        id=row["id"],
        image=image,
        question=row["query"],
        mask=_mask(row["target"]),
        ignore=_mask(row["ignore"]),
        targets=tuple(_target(item) for item in row["targets"]),
        difficulty=row["difficulty"],
        reasoning=dict(row["reasoning"]),
        meta=meta,
        object_id=row.get("object"),
    )


class Checked(SampleSource):
    """Samples in the checked format, as `tools/prepare_data.py` writes it; memory does not grow with their number.

    Args:
        path: The folder.
        difficulty_file: JSON list of `{"image_id": id, "difficulty_score_model": 1…10}`, which takes the place of the
            difficulties in the data set; each sample needs one.
    """

    def __init__(self, path: str, difficulty_file: str | None = None) -> None:
        self.path = path
        self.difficulty_file = difficulty_file
        self._difficulties: dict[str, float] | None = None
        self._parts: list[Path] | None = None
        self._version = VERSION
        self._ends: list[int] = []
        self._open: tuple[int, pq.ParquetFile] | None = None  # one, for each holds its metadata in memory
        self._group: tuple[int, int, pa.Table] | None = None
        self._owner = 0

    def setup(self) -> None:
        """Reads the list of parts.

        Raises:
            ValueError: no such data set, of another version, or with a part missing; one line that names the file.
        """
        if self._parts is not None:
            return
        folder = Path(self.path)
        self._version, parts = read_manifest(folder)
        for name in parts:
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name}: the part is missing, though {MANIFEST} lists it")
        self._ends = list(accumulate(parts.values()))
        if not self._ends or not self._ends[-1]:
            raise ValueError(f"{folder}: the data set has no rows")
        self._parts = [folder / name for name in parts]
        if self.difficulty_file is not None:
            self._difficulties = difficulties_for(self.difficulty_file, self.ids())
        if self._version == 1:
            rank_zero_info(f"{folder}: version 1 names no objects, so each sample counts as an object of its own")

    def __len__(self) -> int:
        if self._parts is None:
            raise RuntimeError("call setup() before reading samples")
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} rows, there is no number {index}")
        part = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[part - 1] if part else 0)
        assert self._parts is not None
        try:
            sample = row_to_sample(self._read(part, row))
        except (ValueError, OSError) as error:
            raise row_error(self._parts[part], row, error) from None
        if self._difficulties is None:
            return sample
        return replace(sample, difficulty=self._difficulties[sample.id])

    def ids(self) -> list[str]:
        import pyarrow.parquet as pq

        len(self)
        assert self._parts is not None
        return [name for part in self._parts for name in pq.read_table(part, columns=["id"])["id"].to_pylist()]

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
            raise ValueError(f"there is no such row, though {MANIFEST} counts it")
        return rows[0]

    def _file(self, part: int) -> pq.ParquetFile:
        import pyarrow.parquet as pq

        assert self._parts is not None
        if self._open is None or self._open[0] != part:
            if self._open is not None:
                self._open[1].close()
                self._open = None
            file = pq.ParquetFile(self._parts[part], pre_buffer=False)
            check_schema(file, self._parts[part], self._version)
            self._open = (part, file)
        return self._open[1]


def read_manifest(folder: Path) -> tuple[int, dict[str, int]]:
    """The version, and the number of rows of each part, in order.

    Raises:
        ValueError: not a data set in the checked format, or one of another version.
    """
    data = read_json(folder / MANIFEST)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{folder / MANIFEST}: not a data set in the checked format")
    if data.get("version") not in READABLE:
        readable = " and ".join(str(version) for version in READABLE)
        raise ValueError(f"{folder / MANIFEST}: version {data.get('version')}, this program reads versions {readable}")
    return int(data["version"]), {str(part["file"]): int(part["rows"]) for part in data["parts"]}


def check_schema(file: pq.ParquetFile, path: Path, version: int = VERSION) -> None:
    """Raises ValueError unless a part has the columns of the checked format."""
    expected = checked_schema(version)
    if not file.schema_arrow.equals(expected, check_metadata=False):
        there = {field.name: field.type for field in file.schema_arrow}
        wrong = [field.name for field in expected if there.get(field.name) != field.type]
        raise ValueError(
            f"{path}: not a part of the checked format; columns that differ: {', '.join(wrong) or 'order'}"
        )


def validate(path: str) -> Iterator[str]:
    """Looks at every row of a data set in the checked format, and at whether all rows of an object have one target.

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
    first: dict[str, int] = {}
    targets = ObjectTargets()
    for index, name in enumerate(ids):
        if first.setdefault(name, index) != index:
            yield f"{path}: row {index}: id {name!r} occurs already in row {first[name]}"
        try:
            targets.add(check_sample(source[index]))
        except ValueError as error:
            yield str(error)


def _stored_image(sample: Sample, file: str | None, images: ImageStorage) -> dict[str, Any]:
    own = open_rgb(file) if file is not None else None
    same = (
        own is not None and own.size == sample.image.size and np.array_equal(np.asarray(own), np.asarray(sample.image))
    )
    if images == "path":
        if file is None or not same:
            raise ValueError(f"sample {sample.id!r}: its image is in no file of its own; store bytes instead")
        return {"bytes": None, "path": str(Path(file).resolve())}
    return {"bytes": Path(file).read_bytes() if file is not None and same else encode_png(sample.image), "path": None}


def _mask(rle: Mapping[str, Any] | None) -> np.ndarray | None:
    return None if rle is None else decode_rle(rle)


def _target(item: Mapping[str, Any]) -> Target:
    (x1, y1, x2, y2), (ax, ay, bx, by) = item["box"], item["points"]
    return Target((x1, y1, x2, y2), ((ax, ay), (bx, by)))
