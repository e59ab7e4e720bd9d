"""Scores predicted masks under a named protocol.

    python tools/score_masks.py --protocol segzero --input IN.jsonl

A row of the input holds `id`, `prediction`, `target` and, where there is one, `ignore`; masks are COCO RLE,
`{"size": [H, W], "counts": …}`. Prints one JSON object: `protocol`, `n`, `giou` and `ciou` in 0 to 1, and their 95 %
bootstrap intervals `giou_ci95` and `ciou_ci95`, each `[low, high]`.

Whatever is wrong is one line on standard error, `FILE:ROW: why` where it is a row, with exit code 2.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from pixelthink.geometry import decode_rle
from pixelthink.jsonl import read_rows, row_error
from pixelthink.metrics.functional import (
    Protocol,
    ProtocolName,
    bootstrap_interval,
    ciou,
    get_protocol,
    giou,
    mask_counts,
    mask_ious,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        options = build_parser().parse_args(arguments)
        result = score(options.input, get_protocol(options.protocol), options.bootstrap_samples, options.seed)
    except (ArgumentError, ImportError, OSError, ValueError) as error:
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
    parser.add_argument("--input", type=str, required=True, help="JSON Lines file of masks (.gz too).")
    parser.add_argument("--bootstrap_samples", type=int, default=2000, help="Resamples behind the intervals.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the resamples.")
    return parser


def score(path: str, protocol: Protocol, samples: int, seed: int) -> dict[str, Any]:
    """The object to print.

    Raises:
        ValueError: if a row cannot be scored, `FILE:ROW: why`, or there is none.
    """
    counts = list(read_counts(path, protocol))
    if not counts:
        raise ValueError(f"{path}: no rows")
    shared, joined = [i for i, _ in counts], [u for _, u in counts]
    ious = mask_ious(shared, joined, protocol)
    return {
        "protocol": protocol.name,
        "n": len(counts),
        "giou": giou(shared, joined, protocol),
        "ciou": ciou(shared, joined, protocol),
        "giou_ci95": bootstrap_interval(ious, samples=samples, seed=seed),
        "ciou_ci95": bootstrap_interval(shared, joined, samples=samples, seed=seed),
    }


def read_counts(path: str, protocol: Protocol) -> Iterator[tuple[int, int]]:
    """Yields the intersection and union of each row."""
    first_seen: dict[str, int] = {}
    for number, row in read_rows(path):
        try:
            name = row_id(row)
            if name in first_seen:
                raise ValueError(f"id {row['id']!r} occurs already in row {first_seen[name]}")
            first_seen[name] = number
            ignore = None if row.get("ignore") is None else read_mask(row, "ignore")
            yield mask_counts(read_mask(row, "prediction"), read_mask(row, "target"), ignore, protocol)
        except ValueError as error:
            raise row_error(path, number, error) from None


def row_id(row: Mapping[str, Any]) -> str:
    """The row's id as JSON text, so that 1 and "1" differ."""
    if not isinstance(row.get("id"), str | int):
        raise ValueError("no 'id', or one that is neither text nor whole number")
    return json.dumps(row["id"])


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
