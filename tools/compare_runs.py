"""Compares two evaluations of the same samples: paired bootstrap, by level, and what changed where.

    python tools/compare_runs.py runs/a runs/b

Each run is a folder of `ResultsWriter`. Prints a table of both runs' gIoU, cIoU, tokens and parse rate with the
difference B − A, its 95 % interval and a p-value, then the samples that gained and lost most; writes all of it, with
every changed sample, as JSON.

Runs of different protocols, counts or samples are refused, unless `--protocol`, `--count` or `--subset` says what to
compare. Errors are one line on standard error, with exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from pixelthink.errors import UserError
from pixelthink.evaluation.comparison import Comparison, Pair, Subset, compare, comparison_document
from pixelthink.evaluation.finished_run import read_run
from pixelthink.evaluation.report.tables import LABELS
from pixelthink.evaluation.results import write_document
from pixelthink.metrics.bootstrap import Difference
from pixelthink.metrics.counting import Count
from pixelthink.metrics.functional import ProtocolName


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        options = build_parser().parse_args(arguments)
        if options.bootstrap_samples < 1 or options.top < 0:
            raise UserError("--bootstrap_samples must be at least 1, and --top at least 0")
        comparison = compare(
            read_run(options.run_a),
            read_run(options.run_b),
            subset=options.subset,
            protocol=options.protocol,
            count=options.count,
            resamples=options.bootstrap_samples,
            seed=options.seed,
        )
        output = Path(options.output or comparison.b.folder / f"comparison_with_{comparison.a.name}.json")
        write_document(output, comparison_document(comparison))
    except (ArgumentError, UserError) as error:
        print(f"error: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 2
    print("\n".join(lines(comparison, options.top)))
    print(f"\nwritten: {output}")
    return 0


def build_parser() -> ArgumentParser:
    """The options."""
    parser = ArgumentParser(prog="compare_runs.py", description=(__doc__ or "").split("\n")[0], exit_on_error=False)
    parser.add_argument("run_a", type=str, help="Folder of the first run.")
    parser.add_argument("run_b", type=str, help="Folder of the second run.")
    parser.add_argument("--subset", type=Subset, default="all", help="'common' compares the samples that both have.")
    parser.add_argument(
        "--protocol", type=ProtocolName | None, default=None, help="Score both runs' masks anew under this protocol."
    )
    parser.add_argument(
        "--count",
        type=Count | None,
        default=None,
        help="Count both runs anew, by expression or by object, see docs/evaluation.md.",
    )
    parser.add_argument(
        "--output", type=str | None, default=None, help="JSON file; RUN_B/comparison_with_A.json by default."
    )
    parser.add_argument("--top", type=int, default=10, help="How many gains and losses to print.")
    parser.add_argument(
        "--bootstrap_samples", type=int, default=10_000, help="Resamples behind intervals and p-values."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the resamples.")
    return parser


def lines(comparison: Comparison, top: int) -> list[str]:
    """What is printed."""
    numbers = comparison_document(comparison)
    counted = f"counted per {comparison.count}"
    if comparison.count == "object":
        counted += f", {comparison.n['all']} objects of {comparison.expressions['all']} expressions"
    text = [
        f"A = {comparison.a.folder}, B = {comparison.b.folder}; protocol {comparison.protocol}; {counted}; "
        f"paired bootstrap, {comparison.resamples} resamples, seed {comparison.seed}",
        f"{'level':7}{'N':>6}  {'metric':17}{'A':>9}{'B':>9}{'B − A':>10}  {'95 % interval':22}{'p':>7}",
    ]
    for level, of_level in comparison.differences.items():
        for metric, difference in of_level.items():
            text.append(f"{level:7}{comparison.n[level]:>6}  {LABELS[metric]:17}{_numbers(difference)}")
    changed = comparison.changed()
    gains = [pair for pair in changed if pair.gain > 0][:top]
    losses = [pair for pair in reversed(changed) if pair.gain < 0][:top]
    of_what = "IoU of expressions" if comparison.count == "object" else "IoU"
    text += ["", f"{of_what}: {numbers['better']} better, {numbers['worse']} worse, {numbers['same']} the same"]
    for title, pairs in (("greatest gains", gains), ("greatest losses", losses)):
        text += [f"{title}:", *map(_pair_line, pairs)] if pairs else []
    return text


def _numbers(difference: Difference) -> str:
    digits = 2 if max(abs(difference.a), abs(difference.b)) > 1 else 4
    low, high = difference.ci95
    interval = f"[{low:+.{digits}f}, {high:+.{digits}f}]"
    values = f"{difference.a:>9.{digits}f}{difference.b:>9.{digits}f}{difference.difference:>+10.{digits}f}"
    return f"{values}  {interval:22}{difference.p:>7.4f}"


def _pair_line(pair: Pair) -> str:
    a, b = pair.a, pair.b
    failure = f" ({b.row['failure']})" if b.row["failure"] else ""
    tokens = f"{a.row['reasoning_tokens']} → {b.row['reasoning_tokens']} tokens"
    question = " ".join(str(a.row["question"]).split())[:60]
    return f"  {pair.gain:+.3f}  {a.iou:.3f} → {b.iou:.3f}{failure}  {tokens}  {a.row['id']}  {question}"


if __name__ == "__main__":
    sys.exit(main())
