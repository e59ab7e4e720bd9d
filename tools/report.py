"""Writes one HTML page about an evaluation, or about two on the same samples; everything in it, nothing fetched.

    python tools/report.py runs/x --output report.html
    python tools/report.py runs/a runs/b --output comparison.html

A run is a folder of `ResultsWriter`, which writes such a page itself as `report.html`. Errors are one line on standard
error, with exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from pixelthink.errors import UserError
from pixelthink.evaluation.comparison import Subset, compare
from pixelthink.evaluation.finished_run import read_run
from pixelthink.evaluation.report.page import ReportOptions, write_report
from pixelthink.metrics.counting import Count
from pixelthink.metrics.functional import ProtocolName


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        options = build_parser().parse_args(arguments)
        if len(options.runs) > 2:
            raise UserError(f"a page shows one run or compares two, got {len(options.runs)}")
        runs = [read_run(folder) for folder in options.runs]
        comparison = None
        if len(runs) == 2:
            comparison = compare(*runs, subset=options.subset, protocol=options.protocol, count=options.count)
        elif options.protocol is not None or options.count is not None or options.subset != "all":
            raise UserError("--protocol and --subset are for comparisons, as --count is, that is for two runs")
        report = ReportOptions(options.title, options.note, options.max_pictures, options.picture_side)
        write_report(Path(options.output), runs[0], comparison, report)
    except (ArgumentError, UserError) as error:
        print(f"error: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 2
    print(f"written: {options.output} ({Path(options.output).stat().st_size / 1e6:.1f} MB)")
    return 0


def build_parser() -> ArgumentParser:
    """The options."""
    parser = ArgumentParser(prog="report.py", description=(__doc__ or "").split("\n")[0], exit_on_error=False)
    defaults = ReportOptions()
    parser.add_argument("runs", type=str, nargs="+", help="Folder of one run, or of two to compare.")
    parser.add_argument("--output", type=str, default="report.html", help="The page; one that is there is replaced.")
    parser.add_argument("--title", type=str | None, default=None, help="Heading; the runs' names by default.")
    parser.add_argument("--note", type=str | None, default=None, help="Remark that stands at the top.")
    parser.add_argument(
        "--max_pictures", type=int, default=defaults.max_pictures, help="Samples with a picture; others are listed."
    )
    parser.add_argument(
        "--picture_side", type=int, default=defaults.picture_side, help="Longer side of the pictures in pixels."
    )
    parser.add_argument("--subset", type=Subset, default="all", help="'common' compares the samples that both have.")
    parser.add_argument(
        "--protocol", type=ProtocolName | None, default=None, help="Score both runs' masks anew under this protocol."
    )
    parser.add_argument(
        "--count", type=Count | None, default=None, help="Count both runs anew, by expression or by object."
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
