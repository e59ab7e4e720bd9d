"""The page's charts as SVG, drawn without a library: a scatter of IoU against tokens, and histograms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from pixelthink.types import LEVELS

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 44
MAX_DOTS = 2500
MARKS = {"easy": "circle", "medium": "square", "hard": "triangle"}


@dataclass(frozen=True)
class Dot:
    """One answer in the scatter.

    Attributes:
        sample: Position of the sample in the gallery.
        tokens: Reasoning tokens.
        iou: 0 to 1.
        level: Its level, or None.
        title: What a pointer is told.
    """

    sample: int
    tokens: int
    iou: float
    level: str | None
    title: str


@dataclass(frozen=True)
class Mean:
    """Mean of a level (or of all) in one run.

    Attributes:
        level: "all" or a level.
        run: Position of the run.
        tokens: Mean reasoning tokens.
        giou: gIoU.
        interval: Its 95 % interval, or None.
    """

    level: str
    run: int
    tokens: float
    giou: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Scale:
    """Data → picture along one axis."""

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
    x = Scale(0, marks[-1], LEFT, WIDTH - RIGHT)
    y = Scale(0, 1, HEIGHT - BOTTOM, TOP)
    parts = [*_grid(x, y, marks), _axis_titles("reasoning tokens", "IoU")]
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
    row = (HEIGHT - TOP - BOTTOM) / max(1, len(groups))
    parts = [_axis_titles(label, "")]
    for mark in marks:
        parts.append(f'<line class="grid" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="tick" x="{x(mark):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{mark:g}</text>'
        )
    said = []
    for place, (level, runs) in enumerate(groups):
        floor = TOP + (place + 1) * row - 4
        parts.append(f'<text class="rowname" x="4" y="{floor - row / 2 + 8:.1f}">{escape(level)}</text>')
        counts = [np.histogram(values, edges)[0] / max(1, len(values)) for values in runs]
        tallest = max(1e-9, *(float(count.max()) for count in counts))
        height = Scale(0, tallest, 0, row - 12)
        for index, count in enumerate(counts):
            outlined = len(runs) > 1 and index == 0
            parts.append(
                _outline(count, edges, x, height, floor) if outlined else _bars(count, edges, x, height, floor, level)
            )
        for index, values in enumerate(runs):
            if len(values):
                middle = float(np.median(values))
                first = " first" if len(runs) > 1 and index == 0 else ""
                parts.append(
                    f'<line class="median{first}" x1="{x(middle):.1f}" x2="{x(middle):.1f}" '
                    f'y1="{floor - row + 10:.1f}" y2="{floor:.1f}"/>'
                )
                said.append(f"{level}: median {middle:g}, mean {np.mean(values):.1f}, longest {max(values)}")
    return _svg(parts, f"{label} by level. {'; '.join(said)}")


def histogram(runs: Sequence[Sequence[float]], label: str) -> str:
    """Distribution of IoUs over all samples, in twentieths: bars of the last run, an outline of the first of two."""
    edges = np.linspace(0, 1, 21)
    counts = [np.histogram(values, edges)[0] for values in runs]
    marks = ticks(max(1, *(int(count.max()) for count in counts)), 4)
    x = Scale(0, 1, LEFT, WIDTH - RIGHT)
    y = Scale(0, marks[-1], HEIGHT - BOTTOM, TOP)
    height = Scale(0, marks[-1], 0, HEIGHT - BOTTOM - TOP)
    parts = [*_grid(x, y, [0, 0.25, 0.5, 0.75, 1], marks), _axis_titles(label, "samples")]
    parts.append(_bars(counts[-1], edges, x, height, HEIGHT - BOTTOM, "all"))
    if len(runs) > 1:
        parts.append(_outline(counts[0], edges, x, height, HEIGHT - BOTTOM))
    low, high = int(counts[-1][0]), int(counts[-1][-1])
    return _svg(parts, f"Distribution of {label}: {low} samples below 0.05, {high} of 0.95 or more")


def _svg(parts: Iterable[str], label: str) -> str:
    start = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    return f"{start}{''.join(parts)}</svg>"


def _grid(x: Scale, y: Scale, columns: Sequence[float], rows: Sequence[float] = (0, 0.25, 0.5, 0.75, 1)) -> list[str]:
    parts = []
    for value in columns:
        at = x(value)
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>'
        )
    for value in rows:
        at = y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
    return parts


def _axis_titles(x: str, y: str) -> str:
    across = (
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x)}</text>'
    )
    middle = (HEIGHT - BOTTOM + TOP) / 2
    up = f'<text class="axis" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
    return across + (up if y else "")


def _mean_marks(means: Sequence[Mean], x: Scale, y: Scale) -> list[str]:
    """One level's mean in each run: whiskers, and between two runs a line."""
    parts = []
    if len(means) > 1:
        a, b = means[0], means[-1]
        parts.append(
            f'<line class="joined level-{a.level}" x1="{x(a.tokens):.1f}" y1="{y(a.giou):.1f}" '
            f'x2="{x(b.tokens):.1f}" y2="{y(b.giou):.1f}"/>'
        )
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
        shape = _shape(MARKS.get(mean.level, "diamond"), at, height)
        parts.append(f'<path class="mean level-{mean.level}{hollow}" d="{shape}"><title>{escape(title)}</title></path>')
    return parts


def _shape(name: str, x: float, y: float, r: float = 7) -> str:
    """A mark's outline; each level has its own, so that it does not hang on colour."""
    if name == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
    if name == "square":
        return f"M{x - 6:.1f} {y - 6:.1f}h12v12h-12Z"
    if name == "triangle":
        return f"M{x:.1f} {y - 8:.1f}l8 14h-16Z"
    return f"M{x:.1f} {y - 9:.1f}l9 9l-9 9l-9 -9Z"


def _bars(counts: np.ndarray, edges: np.ndarray, x: Scale, height: Scale, floor: float, level: str) -> str:
    bars = [
        f"M{x(edges[i]) + 0.5:.1f} {floor:.1f}v{-max(1.5, height(count)):.1f}H{x(edges[i + 1]) - 0.5:.1f}V{floor:.1f}Z"
        for i, count in enumerate(counts.tolist())
        if count
    ]
    return f'<path class="bar level-{level}" d="{"".join(bars)}"/>'


def _outline(counts: np.ndarray, edges: np.ndarray, x: Scale, height: Scale, floor: float) -> str:
    steps = [f"V{floor - height(count):.1f}H{x(edges[i + 1]):.1f}" for i, count in enumerate(counts.tolist())]
    return f'<path class="outline" d="M{x(edges[0]):.1f} {floor:.1f}{"".join(steps)}V{floor:.1f}"/>'


def level_groups(levels: Sequence[str | None]) -> list[tuple[str, list[int]]]:
    """(level, positions) of each level that occurs; (all, every position) where none does."""
    groups: list[tuple[str, list[int]]] = []
    for level in LEVELS:
        groups.append((level, [i for i, found in enumerate(levels) if found == level]))
    groups = [(level, places) for level, places in groups if places]
    return groups or [("all", list(range(len(levels))))]
