"""The checked format: Parquet rows with all that is known of a sample, each checked before it was written.

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
| `meta` | anything else the source said, as JSON |
| `object` | what the query asks for, `Sample.object_id`; null where the sample is an object of its own |

Folders of version 1, which had no `object`, are read as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pixelthink.data.images import ImageOpener, encode_png, open_rgb
from pixelthink.data.reading import read_json
from pixelthink.data.validation import check_sample
from pixelthink.errors import FileError
from pixelthink.files.atomic import atomic_file
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
"""Rows that are read together: few, because a shuffled epoch needs only one of them."""

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
        source: Name of its source.
        images: "bytes" puts the image into the row, "path" points to it.
        licence: Licence of a sample without one of its own.

    Raises:
        UserError: the sample cannot be used, or has no file to point to; names it.
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


def _stored_image(sample: Sample, file: str | None, images: ImageStorage) -> dict[str, Any]:
    if file is not None:
        own = open_rgb(file)
        if own.size != sample.image.size or not np.array_equal(np.asarray(own), np.asarray(sample.image)):
            file = None
    if images == "bytes":
        return {"bytes": encode_png(sample.image) if file is None else Path(file).read_bytes(), "path": None}
    if file is None:
        raise FileError(f"sample {sample.id!r}: its image is in no file of its own; store bytes instead")
    return {"bytes": None, "path": str(Path(file).resolve())}


def row_to_sample(row: Mapping[str, Any], open_image: ImageOpener = open_rgb) -> Sample:
    """The sample of a row; its image is opened by `open_image`.

    Raises:
        ValueError: an image or a mask that cannot be read, or an image of another size than the row says.
    """
    stored = row["image"] or {}
    data, path = stored.get("bytes"), stored.get("path")
    size = row["width"], row["height"]
    file = path if data is None else data
    if file is None:
        raise FileError("there is neither an image nor a path to one")
    image = open_image(file, None if data is None else f"image of {row['id']!r}", size)
    if image.size != size:
        raise FileError(f"the image is {image.width} × {image.height}, the row says {row['width']} × {row['height']}")
    meta = json.loads(row["meta"]) | {"source": row["source"]}
    known = {"licence": row["licence"], "difficulty_parts": dict(row["difficulty_parts"]) or None}
    known["file"] = path if data is None else None
    return Sample(
        id=row["id"],
        image=image,
        question=row["query"],
        mask=None if row["target"] is None else decode_rle(row["target"]),
        ignore=None if row["ignore"] is None else decode_rle(row["ignore"]),
        targets=tuple(_target(item["box"], item["points"]) for item in row["targets"]),
        difficulty=row["difficulty"],
        reasoning=dict(row["reasoning"]),
        meta=meta | {key: value for key, value in known.items() if value is not None},
        object_id=row.get("object"),
    )


def _target(box: list[float], points: list[float]) -> Target:
    (x1, y1, x2, y2), (ax, ay, bx, by) = box, points
    return Target((x1, y1, x2, y2), ((ax, ay), (bx, by)))


def write_part(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes a part a row group at a time; it appears when it is complete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = checked_schema()
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd", write_statistics=False) as writer,
    ):
        waiting = iter(rows)
        while group := list(islice(waiting, ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def read_manifest(folder: Path) -> tuple[int, dict[str, int]]:
    """The version, and the number of rows of each part, in order.

    Raises:
        FileError: not a data set in the checked format, or one of another version.
    """
    data = read_json(folder / MANIFEST)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise FileError(f"{folder / MANIFEST}: not a data set in the checked format")
    if data.get("version") not in READABLE:
        readable = " and ".join(str(version) for version in READABLE)
        raise FileError(f"{folder / MANIFEST}: version {data.get('version')}, this program reads versions {readable}")
    return int(data["version"]), {str(part["file"]): int(part["rows"]) for part in data["parts"]}


def check_schema(file: pq.ParquetFile, path: Path, version: int = VERSION) -> None:
    """Raises FileError unless a part has the columns of the checked format."""
    expected = checked_schema(version)
    if not file.schema_arrow.equals(expected, check_metadata=False):
        there = {field.name: field.type for field in file.schema_arrow}
        wrong = [field.name for field in expected if there.get(field.name) != field.type]
        differing = ", ".join(wrong) or "order"
        raise FileError(f"{path}: not a part of the checked format; columns that differ: {differing}")
