"""Any source → a data set in the checked format: in parts, by several processes, resumable, every rejection listed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from pixelthink.data.base import SampleSource
from pixelthink.data.checked_format import FORMAT, MANIFEST, VERSION, ImageStorage, sample_to_row, write_part
from pixelthink.data.reading import read_json
from pixelthink.errors import FileError, UserError
from pixelthink.files.atomic import write_atomically
from pixelthink.files.jsonl import write_rows_atomically
from pixelthink.types import Sample, difficulty_level

REJECTED = "rejected.jsonl"
SUMMARY = "summary.json"
PROGRESS = "progress"


@dataclass(frozen=True)
class PrepareOptions:
    """How a source is converted.

    Attributes:
        name: Content of the `source` column; the source's class name by default.
        licence: Licence of samples without one of their own.
        images: "bytes" puts images into the data set, "path" points to them.
        rows_per_part: Samples of one part file, and of one step that is not repeated on resuming.
        workers: Processes; 1 converts in this one.
    """

    name: str | None = None
    licence: str | None = None
    images: ImageStorage = "bytes"
    rows_per_part: int = 512
    workers: int = 1

    def __post_init__(self) -> None:
        if self.rows_per_part < 1 or self.workers < 1:
            raise UserError("rows_per_part and workers must be at least 1")


def prepare(
    source: SampleSource,
    output: str | Path,
    options: PrepareOptions | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> dict[str, Any]:
    """Converts a source.

    Parts that an earlier run of the same conversion finished are kept. A row that cannot be used stands in
    `rejected.jsonl` with its reason, as does every row with the id of an earlier row.

    Args:
        source: What to convert, set up.
        output: Folder of the data set.
        options: How.
        progress: Called with a number of rows whenever so many more are done.

    Returns:
        The summary, which is also written to `summary.json`.

    Raises:
        FileError: the folder holds another conversion.
        OSError: a file cannot be written.
    """
    options = options or PrepareOptions()
    folder = Path(output)
    plan = {
        "version": VERSION,
        "source": options.name or type(source).__name__,
        "samples": len(source),
        "licence": options.licence,
        "images": options.images,
        "rows_per_part": options.rows_per_part,
    }
    _check_plan(folder, plan)
    conversion = _Conversion(source, folder, plan)
    waiting = [number for number in range(len(conversion)) if not conversion.is_done(number)]
    for number in set(range(len(conversion))) - set(waiting):
        progress(len(conversion.indices(number)))
    workers = min(options.workers, len(waiting)) if options.workers > 1 and len(waiting) > 1 else 0
    for done in DataLoader(conversion, sampler=waiting, batch_size=None, num_workers=workers):
        if isinstance(done, Exception):
            raise done
        progress(done)
    return conversion.finish()


class _Conversion(Dataset[int | Exception]):
    """Converts part `i` when item `i` is asked for, so that the workers of a `DataLoader` convert several at a time.

    An item is the number of samples looked at, or the error of a file that cannot be written.
    """

    def __init__(self, source: SampleSource, folder: Path, plan: dict[str, Any]) -> None:
        self.source = source
        self.folder = folder
        self.plan = plan

    def __len__(self) -> int:
        return -(-self.plan["samples"] // self.plan["rows_per_part"])

    def file(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"

    def note(self, number: int) -> Path:
        """What was learned of the part's samples; written last, so it says that the part is complete."""
        return self.folder / PROGRESS / f"part-{number:05d}.json"

    def is_done(self, number: int) -> bool:
        return self.note(number).is_file() and self.file(number).is_file()

    def indices(self, number: int) -> range:
        """The samples of a part."""
        start = number * self.plan["rows_per_part"]
        return range(start, min(start + self.plan["rows_per_part"], self.plan["samples"]))

    def __getitem__(self, number: int) -> int | Exception:
        measures: list[dict[str, Any]] = []
        rejected: list[dict[str, Any]] = []
        try:
            write_part(self.file(number), self._rows(number, measures, rejected))
            _write_json(self.note(number), {"rows": measures, "rejected": rejected})
        except OSError as error:
            return error
        return len(self.indices(number))

    def _rows(
        self, number: int, measures: list[dict[str, Any]], rejected: list[dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """The rows of the samples that can be used; fills the two lists on the way."""
        for index in self.indices(number):
            try:
                sample = self.source[index]
                row = sample_to_row(sample, self.plan["source"], self.plan["images"], self.plan["licence"])
            except ValueError as error:
                rejected.append({"index": index, "reason": " ".join(str(error).split())})
                continue
            measures.append({"index": index} | measure(sample))
            yield row

    def finish(self) -> dict[str, Any]:
        """Rejects duplicate ids, then writes the manifest, the rejected rows and the summary."""
        first: dict[str, int] = {}
        measures: list[dict[str, Any]] = []
        rejected: list[dict[str, Any]] = []
        parts = []
        for number in range(len(self)):
            note = read_json(self.note(number))
            keep = [first.setdefault(row["id"], row["index"]) == row["index"] for row in note["rows"]]
            if not all(keep):
                note = self._drop_duplicates(number, note, keep, first)
            measures += note["rows"]
            rejected += note["rejected"]
            parts.append({"file": self.file(number).name, "rows": len(note["rows"])})
        write_rows_atomically(self.folder / REJECTED, rejected)
        summary = summarise(measures, rejected)
        _write_json(self.folder / SUMMARY, summary)
        _write_json(self.folder / MANIFEST, {"format": FORMAT, **self.plan, "parts": parts})
        return summary

    def _drop_duplicates(
        self, number: int, note: dict[str, Any], keep: list[bool], first: dict[str, int]
    ) -> dict[str, Any]:
        """Writes a part anew with the rows to keep; returns its new note."""
        import pyarrow.parquet as pq

        file = pq.ParquetFile(self.file(number))
        self.note(number).unlink()  # a run that is interrupted here has the part converted again
        rows = (row for group in range(file.num_row_groups) for row in file.read_row_group(group).to_pylist())
        write_part(self.file(number), compress(rows, keep))
        dropped = [
            {"index": row["index"], "reason": f"id {row['id']!r} occurs already in sample {first[row['id']]}"}
            for row, kept in zip(note["rows"], keep, strict=True)
            if not kept
        ]
        rejected = sorted(note["rejected"] + dropped, key=lambda row: row["index"])
        new = {"rows": list(compress(note["rows"], keep)), "rejected": rejected}
        _write_json(self.note(number), new)
        return new


def measure(sample: Sample) -> dict[str, Any]:
    """What the summary needs of a sample."""
    return {
        "id": sample.id,
        "area": None if sample.mask is None else float(sample.mask.mean()),
        "difficulty": sample.difficulty,
        "words": len(sample.question.split()),
        "targets": len(sample.targets),
        "unknown": sample.mask is None and not sample.targets,
    }


def summarise(measures: Sequence[dict[str, Any]], rejected: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts, and the spread of mask area, difficulty and query length."""
    difficulties = [row["difficulty"] for row in measures if row["difficulty"] is not None]
    return {
        "samples": len(measures),
        "rejected": len(rejected),
        "without_target": sum(row["targets"] == 0 and not row["unknown"] for row in measures),
        "with_several_targets": sum(row["targets"] > 1 for row in measures),
        "without_mask": sum(row["area"] is None for row in measures),
        "without_difficulty": len(measures) - len(difficulties),
        "levels": dict(Counter(difficulty_level(value) for value in difficulties)),
        "mask_area": _spread([row["area"] for row in measures if row["area"] is not None]),
        "difficulty": _spread(difficulties),
        "query_words": _spread([row["words"] for row in measures]),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, quantiles, mean and largest; empty where there is nothing."""
    if not values:
        return {}
    names = {"min": 0, "p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95, "max": 100}
    quantiles = np.percentile(values, list(names.values())).tolist()
    return {**dict(zip(names, quantiles, strict=True)), "mean": float(np.mean(values))}


def _check_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Makes the folder, or makes sure that it holds this very conversion."""
    file = folder / PROGRESS / "plan.json"
    if file.is_file():
        there = read_json(file)
        if differing := [key for key in plan if there.get(key) != plan[key]]:
            before = ", ".join(f"{key} {there.get(key)!r}, now {plan[key]!r}" for key in differing)
            raise FileError(f"{folder}: holds another conversion ({before}); choose another folder or remove this one")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise FileError(f"{folder}: is not empty; choose another folder")
    _write_json(file, plan)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1))
