"""The page's charts as SVG text: a scatter of IoU against tokens, and histograms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from pixelthink.types import LEVELS

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 44
FLOOR = HEIGHT - BOTTOM
MAX_DOTS = 2500
QUARTERS = (0, 0.25, 0.5, 0.75, 1)


class Dot(NamedTuple):
    """One answer in the scatter: position of its sample in the gallery, tokens, IoU, level or None, and tooltip."""

    sample: int
    tokens: int
    iou: float
    level: str | None
    title: str


class Mean(NamedTuple):
    """Mean of a level (or of "all") in the run at position `run`, with the 95 % interval of its gIoU, or None."""

    level: str
    run: int
    tokens: float
    giou: float
    interval: tuple[float, float] | None


class Scale(NamedTuple):
    """Maps the data from `low` to `high` to the picture from `start` to `end`, along one axis."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(high: float, number: int = 5) -> list[float]:
    """Round numbers from 0 up to `high` or just beyond."""
    rough = max(high, 1e-9) / number
    magnitude = 10.0 ** np.floor(np.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    return [float(round(i * step, 10)) for i in range(int(np.ceil(high / step - 1e-9)) + 1)]


def scatter(dots: Sequence[Dot], means: Sequence[Mean]) -> str:
    """IoU against reasoning tokens: a faint dot an answer, a mark with its interval a mean; two runs' are joined."""
    most = max([1.0, *(float(dot.tokens) for dot in dots), *(mean.tokens for mean in means)])
    marks = ticks(most)
    x, y = Scale(0, marks[-1], LEFT, WIDTH - RIGHT), Scale(0, 1, FLOOR, TOP)
    parts = [*_grid(x, y, marks, QUARTERS), _axis_titles("reasoning tokens", "IoU")]
    step = max(1, -(-len(dots) // MAX_DOTS))
    for number, dot in enumerate(dots[::step]):
        spread = ((number * 0.618) % 1 - 0.5) * 3  # tokens are whole numbers: dots would hide each other
        parts.append(
            f'<circle class="dot level-{dot.level}" data-sample="{dot.sample}" cx="{x(dot.tokens) + spread:.1f}" '
            f'cy="{y(dot.iou):.1f}" r="3"><title>{escape(dot.title)}</title></circle>'
        )
    for level in dict.fromkeys(mean.level for mean in means):
        parts += _mean_marks([mean for mean in means if mean.level == level], x, y)
    runs = len({mean.run for mean in means})
    label = f"IoU against reasoning tokens: {len(dots)} answers" + (f" of {runs} runs" if runs > 1 else "")
    said = [f"{mean.level}: gIoU {mean.giou:.3f} at {mean.tokens:.1f} tokens" for mean in means]
    return _svg(parts, f"{label}. {'; '.join(said)}")


def lengths(groups: Sequence[tuple[str, Sequence[Sequence[int]]]], label: str = "reasoning tokens") -> str:
    """Distribution of lengths, a row a level: bars of the last run, an outline of the first where there are two.

    Args:
        groups: (level, tokens of each run).
        label: What is counted.
    """
    most = max((max(values, default=0) for _, runs in groups for values in runs), default=1)
    marks = ticks(max(1, most))
    x = Scale(0, marks[-1], LEFT + 20, WIDTH - RIGHT)
    edges = np.linspace(0, marks[-1], 41)
    row = (FLOOR - TOP) / max(1, len(groups))
    parts = [_axis_titles(label, "")]
    for mark in marks:
        parts += [_line("grid", x(mark), x(mark), TOP, FLOOR), _text("tick", x(mark), FLOOR + 16, "middle", mark)]
    said = []
    for place, (level, runs) in enumerate(groups):
        floor = TOP + (place + 1) * row - 4
        parts.append(f'<text class="rowname" x="4" y="{floor - row / 2 + 8:.1f}">{escape(level)}</text>')
        counts = [np.histogram(values, edges)[0] / max(1, len(values)) for values in runs]
        tallest = max(1e-9, *(float(count.max()) for count in counts))
        parts += _bars(counts, edges, x, Scale(0, tallest, 0, row - 12), floor, level)
        for index, values in enumerate(runs):
            if len(values):
                middle = float(np.median(values))
                first = " first" if len(runs) > 1 and index == 0 else ""
                parts.append(_line(f"median{first}", x(middle), x(middle), floor - row + 10, floor))
                said.append(f"{level}: median {middle:g}, mean {np.mean(values):.1f}, longest {max(values)}")
    return _svg(parts, f"{label} by level. {'; '.join(said)}")


def histogram(runs: Sequence[Sequence[float]], label: str) -> str:
    """Distribution of IoUs over all samples, in twentieths: bars of the last run, an outline of the first of two."""
    edges = np.linspace(0, 1, 21)
    counts = [np.histogram(values, edges)[0] for values in runs]
    marks = ticks(max(1, *(int(count.max()) for count in counts)), 4)
    x, y = Scale(0, 1, LEFT, WIDTH - RIGHT), Scale(0, marks[-1], FLOOR, TOP)
    height = Scale(0, marks[-1], 0, FLOOR - TOP)
    parts = [*_grid(x, y, QUARTERS, marks), _axis_titles(label, "samples")]
    parts += _bars(counts, edges, x, height, FLOOR, "all")[::-1]
    low, high = int(counts[-1][0]), int(counts[-1][-1])
    return _svg(parts, f"Distribution of {label}: {low} samples below 0.05, {high} of 0.95 or more")


def level_groups(levels: Sequence[str | None]) -> list[tuple[str, list[int]]]:
    """(level, positions) of each level that occurs; (all, every position) where none does."""
    names: list[str] = [level for level in LEVELS if level in levels]
    groups = [(name, [i for i, found in enumerate(levels) if found == name]) for name in names]
    return groups or [("all", list(range(len(levels))))]


def _svg(parts: Iterable[str], label: str) -> str:
    start = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    return f"{start}{''.join(parts)}</svg>"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.1f}"


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    ends = {"x1": x1, "x2": x2, "y1": y1, "y2": y2}
    return f'<line class="{kind}" ' + " ".join(f'{name}="{_number(value)}"' for name, value in ends.items()) + "/>"


def _text(kind: str, x: float, y: float, anchor: str, value: float) -> str:
    return f'<text class="{kind}" x="{_number(x)}" y="{_number(y)}" text-anchor="{anchor}">{value:g}</text>'


def _grid(x: Scale, y: Scale, columns: Sequence[float], rows: Sequence[float]) -> list[str]:
    parts = [_text("tick", x(value), FLOOR + 16, "middle", value) for value in columns]
    for value in rows:
        parts += [_line("grid", LEFT, WIDTH - RIGHT, y(value), y(value))]
        parts += [_text("tick", LEFT - 6, y(value) + 4, "end", value)]
    return parts


def _axis_titles(x: str, y: str) -> str:
    across = (
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x)}</text>'
    )
    middle = (FLOOR + TOP) / 2
    up = f'<text class="axis" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
    return across + (up if y else "")


def _mean_marks(means: Sequence[Mean], x: Scale, y: Scale) -> list[str]:
    """One level's mean in each run: whiskers, and between two runs a line."""
    parts = []
    if len(means) > 1:
        a, b = means[0], means[-1]
        parts.append(_line(f"joined level-{a.level}", x(a.tokens), x(b.tokens), y(a.giou), y(b.giou)))
    for mean in means:
        at, height = x(mean.tokens), y(mean.giou)
        hollow = " hollow" if len(means) > 1 and mean.run == 0 else ""
        if mean.interval is not None:
            low, high = (y(value) for value in mean.interval)
            parts.append(
                f'<path class="whisker level-{mean.level}" d="M{at:.1f} {low:.1f}V{high:.1f}'
                f'M{at - 5:.1f} {low:.1f}h10M{at - 5:.1f} {high:.1f}h10"/>'
            )
        title = f"{mean.level}: gIoU {mean.giou:.3f}, {mean.tokens:.1f} tokens"
        shape = _mark(mean.level, at, height)
        parts.append(f'<path class="mean level-{mean.level}{hollow}" d="{shape}"><title>{escape(title)}</title></path>')
    return parts


def _mark(level: str, x: float, y: float) -> str:
    """Outline of a level's mark; shapes differ, so that levels can be told apart without colour."""
    return {
        "easy": f"M{x - 7:.1f} {y:.1f}a7 7 0 1 0 14 0a7 7 0 1 0 -14 0Z",  # a circle
        "medium": f"M{x - 6:.1f} {y - 6:.1f}h12v12h-12Z",
        "hard": f"M{x:.1f} {y - 8:.1f}l8 14h-16Z",
    }.get(level, f"M{x:.1f} {y - 9:.1f}l9 9l-9 9l-9 -9Z")


def _bars(
    runs: Sequence[np.ndarray], edges: np.ndarray, x: Scale, height: Scale, floor: float, level: str
) -> list[str]:
    """Counts as bars of the last run, behind them an outline of the first where there are two."""
    *outlined, last = (counts.tolist() for counts in runs)
    parts = []
    for counts in outlined:
        steps = [f"V{floor - height(count):.1f}H{x(edges[i + 1]):.1f}" for i, count in enumerate(counts)]
        parts.append(f'<path class="outline" d="M{x(edges[0]):.1f} {floor:.1f}{"".join(steps)}V{floor:.1f}"/>')
    bars = [
        f"M{x(edges[i]) + 0.5:.1f} {floor:.1f}v{-max(1.5, height(count)):.1f}H{x(edges[i + 1]) - 0.5:.1f}V{floor:.1f}Z"
        for i, count in enumerate(last)
        if count
    ]
    return [*parts, f'<path class="bar level-{level}" d="{"".join(bars)}"/>']
