"""Any source → a data set in the checked format: in parts, by several processes, resumable, nothing dropped unsaid."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixelthink.data.base import SampleSource
from pixelthink.data.checked import FORMAT, MANIFEST, ROW_GROUP, VERSION, ImageStorage, checked_schema, sample_to_row
from pixelthink.data.files import read_json
from pixelthink.files.jsonl import write_rows_atomically
from pixelthink.types import Sample, difficulty_level

REJECTED = "rejected.jsonl"
SUMMARY = "summary.json"
PROGRESS = "progress"


@dataclass(frozen=True)
class PrepareOptions:
    """How a source is converted.

    Attributes:
        name: What the `source` column says; the source's class name by default.
        licence: Licence of samples whose source states none.
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
            raise ValueError("rows_per_part and workers must be at least 1")


def prepare(
    source: SampleSource,
    output: str | Path,
    options: PrepareOptions | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> dict[str, Any]:
    """Converts a source.

    Parts that an earlier run of the same conversion finished are kept. A row that cannot be used stands in
    `rejected.jsonl` with its reason, as does every row whose id an earlier row has.

    Args:
        source: What to convert, set up.
        output: Folder of the data set.
        options: How.
        progress: Called with a number of rows whenever so many more are done.

    Returns:
        The summary, which is also written to `summary.json`.

    Raises:
        ValueError: the folder holds another conversion.
    """
    options = options or PrepareOptions()
    folder = Path(output)
    starts = range(0, len(source), options.rows_per_part)
    plan = {
        "version": VERSION,
        "source": options.name or type(source).__name__,
        "samples": len(source),
        "licence": options.licence,
        "images": options.images,
        "rows_per_part": options.rows_per_part,
    }
    _check_plan(folder, plan)
    tasks = []
    for number, start in enumerate(starts):
        task = _Task(folder, number, start, min(start + options.rows_per_part, len(source)), plan)
        if task.note.is_file() and task.part.is_file():
            progress(task.stop - task.start)
        else:
            tasks.append(task)
    for rows in _run(source, tasks, options.workers):
        progress(rows)
    return _finish(folder, len(starts), plan)


@dataclass(frozen=True)
class _Task:
    """One part: samples `start` to `stop`."""

    folder: Path
    number: int
    start: int
    stop: int
    plan: dict[str, Any]

    @property
    def part(self) -> Path:
        return self.folder / f"part-{self.number:05d}.parquet"

    @property
    def note(self) -> Path:
        """What was learned of the part's samples; written last, so it says that the part is whole."""
        return self.folder / PROGRESS / f"part-{self.number:05d}.json"


_source: SampleSource | None = None
"""The source of this process's tasks: workers are forked, so it need not be pickled."""


def _run(source: SampleSource, tasks: Sequence[_Task], workers: int) -> Iterator[int]:
    global _source
    _source = source
    if workers == 1 or len(tasks) < 2:
        yield from map(_convert, tasks)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        yield from pool.map(_convert, tasks)


def _convert(task: _Task) -> int:
    """Writes one part and its note; returns the number of samples looked at."""
    measures: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    write_part(task.part, _rows(task, measures, rejected))
    _write_json(task.note, {"rows": measures, "rejected": rejected})
    return task.stop - task.start


def _rows(task: _Task, measures: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of the samples that can be used; the lists fill on the way."""
    assert _source is not None
    for index in range(task.start, task.stop):
        try:
            sample = _source[index]
            row = sample_to_row(sample, task.plan["source"], task.plan["images"], task.plan["licence"])
        except ValueError as error:
            rejected.append({"index": index, "reason": " ".join(str(error).split())})
            continue
        measures.append({"index": index} | measure(sample))
        yield row


def measure(sample: Sample) -> dict[str, Any]:
    """What the summary looks at."""
    return {
        "id": sample.id,
        "area": None if sample.mask is None else float(sample.mask.mean()),
        "difficulty": sample.difficulty,
        "words": len(sample.question.split()),
        "targets": len(sample.targets),
        "unknown": sample.mask is None and not sample.targets,
    }


def write_part(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes a part a row group at a time, beside its place, then moves it there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = path.with_suffix(".tmp")
    schema = checked_schema()
    with pq.ParquetWriter(temporary, schema, compression="zstd", write_statistics=False) as writer:
        group: list[dict[str, Any]] = []
        for row in rows:
            group.append(row)
            if len(group) == ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema))
    temporary.replace(path)


def _finish(folder: Path, parts: int, plan: dict[str, Any]) -> dict[str, Any]:
    """Rejects duplicate ids, then writes the manifest, the rejected rows and the summary."""
    first: dict[str, int] = {}
    measures: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    listed = []
    for number in range(parts):
        task = _Task(folder, number, 0, 0, plan)
        note = read_json(task.note)
        kept = [row for row in note["rows"] if first.setdefault(row["id"], row["index"]) == row["index"]]
        if len(kept) < len(note["rows"]):
            note = _drop_duplicates(task, note, first)
        measures += note["rows"]
        rejected += note["rejected"]
        listed.append({"file": task.part.name, "rows": len(note["rows"])})
    write_rows_atomically(folder / REJECTED, rejected)
    summary = summarise(measures, rejected)
    _write_json(folder / SUMMARY, summary)
    _write_json(folder / MANIFEST, {"format": FORMAT, **plan, "parts": listed})
    return summary


def _drop_duplicates(task: _Task, note: dict[str, Any], first: dict[str, int]) -> dict[str, Any]:
    """Writes a part anew without the rows whose ids came before; returns its new note."""
    import pyarrow.parquet as pq

    keep = [first[row["id"]] == row["index"] for row in note["rows"]]
    file = pq.ParquetFile(task.part)
    task.note.unlink()  # whoever stops us here has the part converted again
    rows = (row for group in range(file.num_row_groups) for row in file.read_row_group(group).to_pylist())
    write_part(task.part, (row for row, kept in zip(rows, keep, strict=True) if kept))
    dropped = [
        {"index": row["index"], "reason": f"id {row['id']!r} occurs already in sample {first[row['id']]}"}
        for row, kept in zip(note["rows"], keep, strict=True)
        if not kept
    ]
    rejected = sorted(note["rejected"] + dropped, key=lambda row: row["index"])
    new = {"rows": [row for row, kept in zip(note["rows"], keep, strict=True) if kept], "rejected": rejected}
    _write_json(task.note, new)
    return new


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
    array = np.asarray(values, dtype=np.float64)
    quantiles = {f"p{q}": float(np.percentile(array, q)) for q in (5, 25, 50, 75, 95)}
    return {"min": float(array.min()), **quantiles, "max": float(array.max()), "mean": float(array.mean())}


def _check_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Makes the folder, or makes sure that what it holds is of this very conversion."""
    file = folder / PROGRESS / "plan.json"
    if file.is_file():
        there = read_json(file)
        if differing := [key for key in plan if there.get(key) != plan[key]]:
            before = ", ".join(f"{key} {there.get(key)!r}, now {plan[key]!r}" for key in differing)
            raise ValueError(f"{folder}: holds another conversion ({before}); choose another folder or remove this one")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder}: is not empty; choose another folder")
    _write_json(file, plan)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    temporary.replace(path)
