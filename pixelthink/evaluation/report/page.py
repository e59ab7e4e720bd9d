"""Puts the page together: one HTML file that asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pixelthink.errors import UserError
from pixelthink.evaluation.comparison import Comparison
from pixelthink.evaluation.finished_run import FinishedRun
from pixelthink.evaluation.report import charts, tables
from pixelthink.evaluation.report.gallery import Gallery, collect
from pixelthink.failures import was_asked
from pixelthink.files.atomic import write_atomically
from pixelthink.types import LEVELS

REPORT = "report.html"
"""Name of the page in a folder of results."""


@dataclass(frozen=True)
class ReportOptions:
    """How a page is made.

    Attributes:
        title: Heading; the runs' names by default.
        note: A remark that stands at the top, e.g. what its numbers must not be taken for.
        max_pictures: Samples with a picture; the others are listed without, and the page says so.
        picture_side: Longer side of the pictures in pixels.
    """

    title: str | None = None
    note: str | None = None
    max_pictures: int = 400
    picture_side: int = 448

    def __post_init__(self) -> None:
        if self.max_pictures < 0 or self.picture_side < 32:
            raise UserError("max_pictures must be at least 0, and picture_side at least 32")


def write_report(
    path: Path, run: FinishedRun, comparison: Comparison | None = None, options: ReportOptions = ReportOptions()
) -> None:
    """Writes a page that appears whole or not at all.

    Args:
        path: The HTML file.
        run: The run to show; of a comparison, any of the two.
        comparison: Two runs to show side by side in place of one.
        options: How the page is made.

    Raises:
        FileError: it cannot be written.
        UserError: a picture or mask that cannot be read; names it.
    """
    write_atomically(path, render(run, comparison, options))


def render(run: FinishedRun, comparison: Comparison | None = None, options: ReportOptions = ReportOptions()) -> str:
    """The page as text; arguments as in `write_report`."""
    runs, scores = [run], [{row["id"]: row["iou"] for row in run.rows}]
    if comparison is not None:  # compared samples alone; the runs' metrics are of other samples or another protocol
        sides = [[pair.a for pair in comparison.pairs], [pair.b for pair in comparison.pairs]]
        both = zip((comparison.a, comparison.b), sides, strict=True)
        runs = [replace(of_run, rows=[scored.row for scored in side], metrics={}) for of_run, side in both]
        scores = [{scored.row["id"]: scored.iou for scored in side} for side in sides]
    gallery = collect(runs, scores, max_pictures=options.max_pictures, side=options.picture_side)
    measured = all(iou is not None for of_run in scores for iou in of_run.values())
    script = _resource("page.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_resource("page.html")).render(
        title=options.title or " → ".join(run.name for run in runs),
        note=options.note,
        runs=runs,
        protocol=comparison.protocol if comparison else run.header.get("protocol"),
        number=len(gallery.samples),
        counted=tables.counted(comparison or run),
        comparison=comparison,
        tiles=tables.tiles(run) if comparison is None else tables.difference_tiles(comparison),
        headline=tables.headline(run) if comparison is None else tables.differences(comparison),
        judge=run.metrics.get("judge") if comparison is None else None,
        charts=_charts(runs, gallery, measured=measured, comparison=comparison),
        failures=tables.causes(runs, "failures"),
        flaws=tables.causes(runs, "flaws"),
        stages=tables.stages(runs),
        facts=[tables.facts(run) for run in runs],
        configs=[json.dumps(run.header.get("config"), indent=1, ensure_ascii=False) for run in runs],
        gallery=gallery,
        levels=[level for level in LEVELS if any(sample["level"] == level for sample in gallery.samples)],
        measured=measured,
        style=Markup(_resource("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        data=Markup(_json(gallery)),
    )


def _charts(
    runs: Sequence[FinishedRun], gallery: Gallery, *, measured: bool, comparison: Comparison | None
) -> dict[str, Markup]:
    """The charts by name."""
    samples = gallery.samples
    answers = [[sample["answers"][run] for sample in samples] for run in range(len(runs))]
    groups = charts.level_groups([sample["level"] for sample in samples])
    tokens = [[a["tokens"] if was_asked(a["failure"]) else None for a in of_run] for of_run in answers]
    of_levels = [
        (level, [[t for i in at if (t := column[i]) is not None] for column in tokens]) for level, at in groups
    ]
    found = {"lengths": charts.lengths(of_levels)}
    if measured:
        ious = [[answer["iou"] for answer in of_run] for of_run in answers]
        dots = []
        for place, (sample, length) in enumerate(zip(samples, tokens[-1], strict=True)):
            if length is not None:
                title = f"{sample['question'][:80]} (IoU {ious[-1][place]:.2f}, {length} tokens)"
                dots.append(charts.Dot(place, length, ious[-1][place], sample["level"], title))
        found["scatter"] = charts.scatter(dots, _means(runs, tokens, ious, groups, comparison))
        found["ious"] = charts.histogram(ious, "IoU")
    return {name: Markup(svg) for name, svg in found.items()}


def _means(
    runs: Sequence[FinishedRun],
    tokens: Sequence[Sequence[int | None]],
    ious: Sequence[Sequence[float]],
    groups: Sequence[tuple[str, Sequence[int]]],
    comparison: Comparison | None,
) -> list[charts.Mean]:
    """gIoU and tokens of each level in each run; intervals where one run's metrics have them."""
    means = []
    for level, places in groups:
        part = "" if level == "all" else f"/{level}"
        for run, found in enumerate(runs):
            mean = float(np.mean([ious[run][i] for i in places]))
            length = float(np.mean([t for i in places if (t := tokens[run][i]) is not None] or [0]))
            if comparison is None:
                giou = float(found.metrics.get(f"giou{part}", mean))  # per object where objects were counted
            else:
                of_both = comparison.differences[level]["giou"]
                giou = (of_both.a, of_both.b)[run]
            interval = found.metrics.get(f"giou_ci95{part}")  # a comparison has none
            means.append(charts.Mean(level, run, length, giou, tuple(interval) if interval else None))
    return means


def _json(gallery: Gallery) -> str:
    """Samples and pictures as JSON that no text in it can break out of: `<`, `>`, `&` are written as escapes."""
    text = json.dumps({"samples": gallery.samples, "pictures": gallery.pictures}, ensure_ascii=False, allow_nan=False)
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _resource(name: str) -> str:
    return files("pixelthink.evaluation.report").joinpath(name).read_text(encoding="utf-8")
