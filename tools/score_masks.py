"""Scores predicted masks under a named protocol.

    python tools/score_masks.py --protocol segzero --input IN.jsonl

A row of the input holds `id`, `prediction`, `target` and, where there is one, `ignore`; masks are COCO RLE,
`{"size": [H, W], "counts": …}`. It may hold `difficulty`, 1 to 10, and `failure`, why there is no answer: such a row
scores 0, and its masks may be null. The `samples.jsonl` of an evaluation is such a file.

Prints one JSON object: `protocol`, `n`, `giou` and `ciou` in 0 to 1, and their 95 % bootstrap intervals `giou_ci95` and
`ciou_ci95`, each `[low, high]`; `bootstrap`, their resamples and seed; `failures`, the number of rows by cause; and
`levels`, the same five numbers of the easy (difficulty below 3.5), medium and hard (5.0 and more) rows, if any.

With `--count object`, each object counts once: the rows of one object are averaged first. A row then holds `object`,
what was asked for (null where the row is an object of its own), and the result also says `count` and `expressions`,
while `n` is the number of objects. Failures are of rows either way.

Errors are one line on standard error, `FILE:ROW: why` for a row, with exit code 2.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jsonargparse import ArgumentError, ArgumentParser

from pixelthink.data.validation import ObjectTargets, check_difficulty
from pixelthink.errors import FileError, UserError
from pixelthink.files.jsonl import read_rows, row_error
from pixelthink.geometry import decode_rle
from pixelthink.metrics.counting import Count, mask_scores, object_key
from pixelthink.metrics.functional import Protocol, ProtocolName, get_protocol, mask_counts, mask_ious
from pixelthink.types import LEVELS, Level, difficulty_level


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        options = build_parser().parse_args(arguments)
        if options.bootstrap_samples < 1:
            raise UserError(f"--bootstrap_samples must be at least 1, got {options.bootstrap_samples}")
        protocol = get_protocol(options.protocol)
        result = score(options.input, protocol, options.count, options.bootstrap_samples, options.seed)
    except (ArgumentError, UserError) as error:
        print(f"error: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 0


def build_parser() -> ArgumentParser:
    """The options."""
    parser = ArgumentParser(prog="score_masks.py", description=(__doc__ or "").split("\n")[0], exit_on_error=False)
    parser.add_argument(
        "--protocol",
        type=ProtocolName,
        required=True,
        help="Evaluator to follow. Ignored pixels are removed (lisa), become target (segzero) or background (lens); "
        "a mask that is empty on both sides counts 1, 0 and 1.",
    )
    parser.add_argument(
        "--count",
        type=Count,
        default="expression",
        help="What counts once: each row, or each object, whose rows are averaged first; rows hold 'object' then.",
    )
    parser.add_argument("--input", type=str, required=True, help="JSON Lines file of masks (.gz too).")
    parser.add_argument("--bootstrap_samples", type=int, default=2000, help="Resamples behind the intervals.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the resamples.")
    return parser


@dataclass(frozen=True)
class ScoredRow:
    """Intersection and union in pixels, and IoU, of one row; its cause of failure, difficulty level and object."""

    intersection: int
    union: int
    iou: float
    failure: str | None
    level: Level | None
    object_key: str | None = None


def score(path: str, protocol: Protocol, count: Count, samples: int, seed: int) -> dict[str, Any]:
    """The object to print.

    Raises:
        FileError: a row cannot be scored, `FILE:ROW: why`, or there is none.
    """
    rows = list(read_scored(path, protocol, count))
    if not rows:
        raise FileError(f"{path}: no rows")
    by_level = {level: [row for row in rows if row.level == level] for level in LEVELS}
    return {
        "protocol": protocol.name,
        **({"count": count} if count == "object" else {}),
        **scores(rows, protocol, count, samples, seed),
        "bootstrap": {"samples": samples, "seed": seed},
        "failures": dict(Counter(row.failure for row in rows if row.failure is not None)),
        "levels": {level: scores(found, protocol, count, samples, seed) for level, found in by_level.items() if found},
    }


def scores(rows: Sequence[ScoredRow], protocol: Protocol, count: Count, samples: int, seed: int) -> dict[str, Any]:
    """`n`, `giou`, `ciou` and their intervals; of objects `expressions` too."""
    shared, joined = [row.intersection for row in rows], [row.union for row in rows]
    objects = [str(row.object_key) for row in rows] if count == "object" else None
    ious = [row.iou for row in rows]
    return mask_scores(shared, joined, ious, protocol, objects=objects, samples=samples, seed=seed)


def read_scored(path: str, protocol: Protocol, count: Count) -> Iterator[ScoredRow]:
    """Yields the rows of a file, scored.

    Raises:
        FileError: `FILE:ROW: why`.
    """
    first_seen: dict[str, int] = {}
    targets = ObjectTargets()
    for number, row in read_rows(path):
        try:
            name = row_id(row)
            if name in first_seen:
                raise ValueError(f"id {row['id']!r} occurs already in row {first_seen[name]}")
            first_seen[name] = number
            scored = scored_row(row, protocol)
            yield scored if count == "expression" else replace(scored, object_key=row_object(row, name, targets))
        except ValueError as error:
            raise row_error(path, number, error) from None


def scored_row(row: Mapping[str, Any], protocol: Protocol) -> ScoredRow:
    """Scores a row; a failure is I = 0 and U = |target|, or 0 where the target is unknown as well.

    Raises:
        ValueError: something is missing or of the wrong kind.
    """
    failure, difficulty = row.get("failure"), row.get("difficulty")
    if failure is not None and not isinstance(failure, str):
        raise ValueError("'failure' must be the name of a cause, or null")
    level = None if difficulty is None else difficulty_level(check_difficulty(difficulty, "the row"))
    if failure is not None and row.get("target") is None:
        return ScoredRow(0, 0, 0.0, failure, level)
    target = read_mask(row, "target")
    ignore = None if row.get("ignore") is None else read_mask(row, "ignore")
    found = read_mask(row, "prediction") if failure is None else np.zeros_like(target)
    shared, joined = mask_counts(found, target, ignore, protocol)
    if failure is not None:
        return ScoredRow(0, joined, 0.0, failure, level)
    return ScoredRow(shared, joined, float(mask_ious([shared], [joined], protocol)[0]), None, level)


def row_id(row: Mapping[str, Any]) -> str:
    """The row's id as JSON text, so that 1 and "1" differ."""
    if not isinstance(row.get("id"), str | int):
        raise ValueError("no 'id', or one that is neither text nor whole number")
    return json.dumps(row["id"])


def row_object(row: Mapping[str, Any], name: str, targets: ObjectTargets) -> str:
    """Key of the object that the row asks for.

    Args:
        row: The row; its `object` is null where it is an object of its own.
        name: Its id, as `row_id` has it.
        targets: Targets of the rows before; rows of one object must have the same.

    Raises:
        ValueError: no `object`, or one that is neither text, whole number nor null; or a row before has another target.
    """
    if "object" not in row:
        raise ValueError("no 'object', which --count object needs")
    value = row["object"]
    if value is None:
        return object_key(name, None)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("'object' must be text, a whole number or null")
    if row.get("target") is not None:
        targets.add_mask(json.dumps(value), name, read_mask(row, "target"))
    return object_key(name, json.dumps(value))


def read_mask(row: Mapping[str, Any], key: str) -> Any:
    """The row's mask under a key, bool (H, W)."""
    if row.get(key) is None:
        raise ValueError(f"no {key!r}")
    try:
        return decode_rle(row[key])
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
