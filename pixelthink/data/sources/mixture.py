"""Several sources in fixed shares."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from pixelthink.data.base import ImageSource, SampleSource
from pixelthink.data.images import ImageOpener
from pixelthink.errors import UserError
from pixelthink.types import Sample


class Mixture(ImageSource):
    """Samples of several sources, interleaved by weight.

    The sample at an index is a function of sources, weights, size and seed alone, so a resumed epoch repeats and skips
    nothing. Every stretch of the mixture holds the sources in their shares, give or take one sample each. A source is
    gone through in a random order, all of it before any of it again.

    Ids are `NAME/ID`, with `~2`, `~3`, … behind them from the second time on. Every time, a sample asks for the same
    object, `NAME/OBJECT`, or `NAME/ID` where its source names none.

    Args:
        sources: The sources by name.
        weights: Share of each name, in any unit; by default each source's length, so that every sample comes once.
        size: Number of samples; the sum of the sources' lengths by default.
        seed: Seed of the orders.
    """

    def __init__(
        self,
        sources: dict[str, SampleSource],
        weights: dict[str, float] | None = None,
        size: int | None = None,
        seed: int = 0,
    ) -> None:
        if not sources:
            raise UserError("Mixture: there are no sources")
        if weights is not None and weights.keys() != sources.keys():
            raise UserError(f"Mixture: weights are for {', '.join(weights)}, sources are {', '.join(sources)}")
        if weights is not None and not all(math.isfinite(w) and w > 0 for w in weights.values()):
            raise UserError(f"Mixture: weights must be positive, got {weights}")
        if size is not None and size < 1:
            raise UserError("Mixture: size must be at least 1")
        self.sources = sources
        self.weights = weights
        self.size = size
        self.seed = seed
        self._plan: tuple[np.ndarray, np.ndarray] | None = None  # source, and how many of it came before, by index
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def setup(self) -> None:
        """Opens the sources and decides where each sample stands.

        Raises:
            UserError: a source cannot be opened or is empty.
        """
        if self._plan is not None:
            return
        for name, source in self.sources.items():
            source.setup()
            if not len(source):
                raise UserError(f"Mixture: source {name!r} is empty")
        lengths = {name: len(source) for name, source in self.sources.items()}
        weights = self.weights or {name: float(length) for name, length in lengths.items()}
        counts = _shares(list(weights.values()), self.size or sum(lengths.values()))
        which = np.concatenate([np.full(count, i, dtype=np.int32) for i, count in enumerate(counts)])
        earlier = np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
        due = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
        order = np.argsort(due, kind="stable")
        self._plan = which[order], earlier[order]

    def __len__(self) -> int:
        return len(self._planned()[0])

    def read(self, index: int, open_image: ImageOpener) -> Sample:
        name, position, turn = self._place(index)
        sample = self.sources[name].read(position, open_image)
        shared = sample.id if sample.object_id is None else sample.object_id
        return replace(sample, id=_named(name, sample.id, turn), object_id=f"{name}/{shared}")

    def ids(self) -> list[str]:
        known = {name: source.ids() for name, source in self.sources.items()}
        places = (self._place(index) for index in range(len(self)))
        return [_named(name, known[name][position], turn) for name, position, turn in places]

    def _place(self, index: int) -> tuple[str, int, int]:
        """Source, position in it, and how many times the source was gone through before."""
        which, earlier = self._planned()
        if not 0 <= index < len(which):
            raise IndexError(f"the mixture has {len(which)} samples, there is no number {index}")
        number = int(which[index])
        name = list(self.sources)[number]
        turn, place = divmod(int(earlier[index]), len(self.sources[name]))
        if (kept := self._orders.get(name)) is None or kept[0] != turn:  # the order of the newest pass is kept
            rng = np.random.default_rng([self.seed, number, turn])
            kept = self._orders[name] = (turn, rng.permutation(len(self.sources[name])))
        return name, int(kept[1][place]), turn

    def _planned(self) -> tuple[np.ndarray, np.ndarray]:
        if self._plan is None:
            raise RuntimeError("call setup() before reading samples")
        return self._plan


def _named(source: str, name: str, turn: int) -> str:
    return f"{source}/{name}" + (f"~{turn + 1}" if turn else "")


def _shares(weights: list[float], size: int) -> list[int]:
    """Whole numbers that add up to `size` in proportion to the weights: rounded down, the rest to the largest rests."""
    total = sum(weights)
    exact = [size * weight / total for weight in weights]
    counts = [int(value) for value in exact]
    rests = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in rests[: size - sum(counts)]:
        counts[i] += 1
    return counts
