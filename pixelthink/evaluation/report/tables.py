"""The page's tables: headline by level, differences, failures, time, and how it was run; plain rows of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pixelthink.evaluation.comparison import Comparison
from pixelthink.evaluation.finished_run import FinishedRun
from pixelthink.failures import was_asked, was_read
from pixelthink.metrics.bootstrap import Difference
from pixelthink.types import LEVELS

STAGES = (
    ("preparation_ms", "image preparation"),
    ("prefill_ms", "prefill"),
    ("decoding_ms", "decoding"),
    ("segmentation_ms", "segmentation"),
)
EFFICIENCY = ("sat", "rscore", "rst", "urss")
LABELS = {
    "giou": "gIoU",
    "ciou": "cIoU",
    "reasoning_tokens": "reasoning tokens",
    "answer_tokens": "answer tokens",
    "response_tokens": "response tokens",
    "words": "words",
    "parse_rate": "parse rate",
    "sat": "SAT",
    "rscore": "RScore",
    "rst": "RST",
    "urss": "URSS",
}
DIGITS = {"giou": 3, "ciou": 3, "parse_rate": 3, "sat": 2, "rscore": 2, "rst": 2, "urss": 2}


class Table(NamedTuple):
    """A heading a column and a row of texts a line, the first of which names the line."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Tile(NamedTuple):
    """One number of the headline."""

    name: str
    value: str
    note: str


class Cause(NamedTuple):
    """One cause of failure (or flaw): its name, number and share of the answers in each run."""

    name: str
    numbers: tuple[int, ...]
    shares: tuple[float, ...]


class Stage(NamedTuple):
    """One stage of the time: its name, mean milliseconds in each run, and lengths of their bars, 0 to 1."""

    name: str
    milliseconds: tuple[float, ...]
    lengths: tuple[float, ...]


def answers_of(run: FinishedRun) -> int:
    """How many answers a run has; `n` may count objects."""
    values = values_of(run)
    return int(values.get("expressions", values["n"]))


def counted(run: FinishedRun | Comparison) -> str:
    """ "N objects of M expressions"; "" where expressions were counted."""
    if isinstance(run, Comparison):
        return f"{run.n['all']} objects of {len(run.pairs)} expressions" if run.count == "object" else ""
    values = run.metrics
    return f"{values['n']} objects of {values['expressions']} expressions" if "expressions" in values else ""


def values_of(run: FinishedRun) -> dict[str, Any]:
    """The run's metrics; of a prediction, whose truth is unknown, what its rows say."""
    if run.metrics:
        return run.metrics
    rows = run.rows
    asked = [row for row in rows if was_asked(row["failure"])] or rows
    values: dict[str, Any] = {"n": len(rows), "parse_rate": float(np.mean([was_read(row["failure"]) for row in asked]))}
    values["reasoning_tokens"] = float(np.mean([row["reasoning_tokens"] for row in asked]))
    values["failures"] = dict(Counter(row["failure"] for row in rows if row["failure"] is not None))
    values["flaws"] = dict(Counter(flaw for row in rows for flaw in row.get("flaws") or []))
    for stage, _ in STAGES:
        known = [row["timings"][stage] for row in rows if (row.get("timings") or {}).get(stage) is not None]
        values |= {stage: float(np.mean(known))} if known else {}
    return values


def tiles(run: FinishedRun) -> list[Tile]:
    """The headline's numbers of one run."""
    values = values_of(run)
    found = []
    for metric in ("giou", "ciou"):
        if metric in values:
            low, high = values.get(f"{metric}_ci95", (None, None))
            note = "" if low is None else f"95 % interval {low:.3f} to {high:.3f}"
            found.append(Tile(LABELS[metric], f"{values[metric]:.3f}", note))
    by_level = [f"{level} {values[key]:.1f}" for level in LEVELS if (key := f"reasoning_tokens/{level}") in values]
    found.append(Tile("reasoning tokens", f"{values['reasoning_tokens']:.1f}", ", ".join(by_level) or "mean"))
    failed = sum(values.get("failures", {}).values())
    found.append(Tile("parse rate", f"{values['parse_rate']:.3f}", f"{failed} of {answers_of(run)} answers failed"))
    return found


def difference_tiles(comparison: Comparison) -> list[Tile]:
    """The headline's numbers of two runs: A → B, and how sure the difference is."""
    found = []
    for metric in ("giou", "ciou", "reasoning_tokens", "parse_rate"):
        a, b, difference = _difference_texts(metric, comparison.differences["all"][metric])
        found.append(Tile(LABELS[metric], f"{a} → {b}", difference))
    return found


def headline(run: FinishedRun) -> Table:
    """A line for all samples and one a level."""
    values = values_of(run)
    names = ["giou", "ciou", "reasoning_tokens", "answer_tokens", "response_tokens", "parse_rate"]
    names += [name for name in values if name.removeprefix("reference_") in EFFICIENCY]
    names = [name for name in names if name in values]
    parts = ["", *(f"/{level}" for level in LEVELS if f"n/{level}" in values)]
    numbers = {"n": "N", "expressions": "expressions"} if "expressions" in values else {"n": "N"}
    rows = [
        (
            *(part.removeprefix("/") or "all", *(str(values[f"{number}{part}"]) for number in numbers)),
            *(_cell(values, name, part) for name in names),
        )
        for part in parts
    ]
    return Table(("level", *numbers.values(), *(label_of(name) for name in names)), tuple(rows))


def label_of(name: str) -> str:
    """Display name of a metric; it says "(reference)" where the ratings are not those of the paper's judge."""
    plain = name.removeprefix("reference_")
    return LABELS.get(plain, plain) + (" (reference)" if plain != name else "")


def _cell(values: Mapping[str, Any], name: str, part: str) -> str:
    value = values.get(f"{name}{part}")
    if value is None:
        return "–"
    text = f"{value:.{DIGITS.get(name.removeprefix('reference_'), 1)}f}"
    interval = values.get(f"{name}_ci95{part}")
    return f"{text} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else text


def differences(comparison: Comparison) -> Table:
    """A line for each metric and level: both runs, difference, interval, p."""
    rows = [
        (level, str(comparison.n[level]), LABELS[metric], *_difference_texts(metric, found), f"{found.p:.4f}")
        for level, of_level in comparison.differences.items()
        for metric, found in of_level.items()
    ]
    return Table(("level", "N", "metric", "A", "B", "B − A, 95 % interval", "p"), tuple(rows))


def _difference_texts(metric: str, found: Difference) -> tuple[str, str, str]:
    """A, B, and their difference with its interval."""
    digits, (low, high) = DIGITS.get(metric, 1), found.ci95
    difference = f"{found.difference:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"{found.a:.{digits}f}", f"{found.b:.{digits}f}", difference


def causes(runs: Sequence[FinishedRun], key: str) -> list[Cause]:
    """Failures ("failures") or flaws ("flaws") of the runs, the most frequent first."""
    counts = [values_of(run).get(key) or {} for run in runs]
    found = []
    for name in sorted(set().union(*counts)):
        numbers = tuple(int(of_run.get(name, 0)) for of_run in counts)
        shares = tuple(number / answers_of(run) for number, run in zip(numbers, runs, strict=True))
        found.append(Cause(name, numbers, shares))
    return sorted(found, key=lambda cause: -max(cause.numbers))


def stages(runs: Sequence[FinishedRun]) -> list[Stage]:
    """Where the time went, for the stages that every run measured; bars end at the longest run's total."""
    values = [values_of(run) for run in runs]
    known = [(key, name) for key, name in STAGES if all(key in value for value in values)]
    longest = max((sum(value[key] for key, _ in known) for value in values), default=0.0) or 1.0
    times = [(name, tuple(value[key] for value in values)) for key, name in known]
    return [Stage(name, of_runs, tuple(ms / longest for ms in of_runs)) for name, of_runs in times]


def facts(run: FinishedRun) -> list[tuple[str, str]]:
    """How a run was made, in a few lines."""
    header = run.header
    sampling = header.get("sampling") or {}
    lines: list[tuple[str, object]] = [
        ("folder", run.folder),
        ("protocol", header.get("protocol")),
        ("counted per", header.get("count")),
        ("policy", header.get("policy")),
        ("weights", header.get("weights")),
        ("checkpoint", header.get("checkpoint")),
        ("data", _component(header.get("data"))),
        ("prompt", _component(header.get("prompt"))),
        ("segmenter", _component(header.get("segmenter"))),
        ("engine", str(header.get("engine") or "").rpartition(".")[2] or None),
        ("image size", header.get("image_size")),
        ("coordinates", header.get("coordinates")),
        ("temperature", sampling.get("temperature")),
        ("longest response", sampling.get("max_new_tokens")),
        ("bootstrap", _options(header.get("bootstrap"))),
        ("device", header.get("device")),
        ("finished", header.get("finished")),
        ("versions", _options(header.get("versions"))),
    ]
    return [(name, str(value)) for name, value in lines if value is not None]


def _component(value: Any) -> str | None:
    """A component with its options on one line."""
    if not isinstance(value, Mapping):
        return None if value is None else str(value)
    options = _options(value.get("init_args"))
    return str(value.get("class_path", "")).rpartition(".")[2] + (f" ({options})" if options else "")


def _options(value: Any) -> str | None:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, Mapping) else None
