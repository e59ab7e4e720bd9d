"""Paired bootstrap: how much two runs differ on the same samples, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pixelthink.metrics.functional import RESAMPLES_AT_ONCE


@dataclass(frozen=True)
class Difference:
    """A number of two runs on the same samples.

    Attributes:
        a: Of the first run.
        b: Of the second.
        difference: `b − a`.
        ci95: 95 % percentile interval of the difference.
        p: Twice the share of resamples on the rarer side of 0, those at 0 counted on both sides, at most 1; the data
            count as one more resample on each side, so it is never 0. Small where the sign is sure: like a p-value, but
            of the percentile bootstrap (Efron and Tibshirani, 1993, chapter 15).
    """

    a: float
    b: float
    difference: float
    ci95: tuple[float, float]
    p: float


def paired_bootstrap(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    a_weights: npt.ArrayLike | None = None,
    b_weights: npt.ArrayLike | None = None,
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Compares two means, or two ratios of sums, over the same samples; each resample draws samples, not runs.

    Pairs are put in order first, so the result depends on the seed but not on the order of the samples.

    Args:
        a: The first run's value of each sample, (N,): IoUs for gIoU, intersections for cIoU.
        b: The second run's, in the same order.
        a_weights: For a ratio of sums its denominators, (N,), 0 or more (cIoU: unions); None for a mean. A ratio whose
            denominators are all 0 counts as 0.
        b_weights: The second run's.
        samples: Number of resamples.
        seed: Equal seeds give equal results.

    Raises:
        ValueError: no samples, unequal lengths, or fewer than one resample.
    """
    top = np.array([a, b], dtype=np.float64)
    weights = [np.ones_like(top[0]) if w is None else np.asarray(w, dtype=np.float64) for w in (a_weights, b_weights)]
    if top.ndim != 2 or not top.size or any(w.shape != top[0].shape for w in weights) or samples < 1:
        raise ValueError("a paired bootstrap needs at least one sample, equally many of each run, and samples ≥ 1")
    columns = np.stack([*top, *weights])
    columns = columns[:, np.lexsort(columns)]
    generator = np.random.default_rng(seed)
    number = columns.shape[1]
    differences = np.empty(samples)
    step = max(1, RESAMPLES_AT_ONCE // number)
    for start in range(0, samples, step):
        drawn = generator.integers(number, size=(min(step, samples - start), number))
        sums = columns[:, drawn].sum(axis=2)
        differences[start : start + len(drawn)] = _ratio(sums[1], sums[3]) - _ratio(sums[0], sums[2])
    totals = columns.sum(axis=1)
    first, second = float(_ratio(totals[0], totals[2])), float(_ratio(totals[1], totals[3]))
    low, high = np.quantile(differences, [0.025, 0.975])
    rarer = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    p = min(1.0, 2 * (rarer + 1) / (samples + 1))
    return Difference(first, second, second - first, (float(low), float(high)), p)


def _ratio(sums: np.ndarray, totals: np.ndarray) -> np.ndarray:
    return np.where(totals > 0, sums / np.where(totals > 0, totals, 1.0), 0.0)
