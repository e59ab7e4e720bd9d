"""Percentile bootstrap: how sure a score is, and how sure the difference of two runs on the same samples is.

`scipy.stats.bootstrap` draws. Samples are sorted first, so results depend on the seed, but neither on the order of the
samples nor on the number of processes that they came from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_DRAWS = 2_000_000
"""Samples drawn at a time, which bounds the memory."""


@dataclass(frozen=True)
class Difference:
    """A score of two runs on the same samples.

    Attributes:
        a: Score of the first run.
        b: Score of the second.
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


def bootstrap_interval(
    values: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, or of a ratio of sums (Efron, 1979).

    Args:
        values: (N,): IoUs for gIoU, intersections for cIoU.
        weights: None for the mean of `values`; for the ratio Σvalues/Σweights (cIoU: unions) the denominators, (N,),
            0 or more. A resample with only zeros as denominators counts as 0.
        level: Coverage, between 0 and 1.
        samples: Number of resamples.
        seed: Equal seeds give equal intervals.

    Returns:
        `(low, high)`.

    Raises:
        ValueError: no values, unequal lengths, or an argument out of range.
    """
    top = np.asarray(values, dtype=np.float64)
    bottom = np.ones_like(top) if weights is None else np.asarray(weights, dtype=np.float64)
    if top.ndim != 1 or top.size == 0 or top.shape != bottom.shape:
        raise ValueError(f"a bootstrap needs (N,) values and as many weights, got {top.shape} and {bottom.shape}")
    if not 0.0 < level < 1.0 or samples < 1:
        raise ValueError(f"a bootstrap needs 0 < level < 1 and samples ≥ 1, got {level} and {samples}")

    def ratio(bottom: np.ndarray, top: np.ndarray, axis: int) -> np.ndarray:
        return _ratio(top.sum(axis=axis), bottom.sum(axis=axis))

    ratios = _resampled(ratio, np.stack([bottom, top]), samples, seed)
    low, high = np.quantile(ratios, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


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

    Args:
        a: The first run's value of each sample, (N,): IoUs for gIoU, intersections for cIoU.
        b: The second run's, in the same order.
        a_weights: Denominators of the first run as in `bootstrap_interval`, (N,); None for a mean.
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

    def difference(*columns: np.ndarray, axis: int) -> np.ndarray:
        sums = [np.asfortranarray(column).sum(axis=axis) for column in columns]  # adds in the order of earlier versions
        return _ratio(sums[1], sums[3]) - _ratio(sums[0], sums[2])

    differences = _resampled(difference, columns, samples, seed)
    totals = columns.sum(axis=1)
    first, second = float(_ratio(totals[0], totals[2])), float(_ratio(totals[1], totals[3]))
    low, high = np.quantile(differences, [0.025, 0.975])
    rarer = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    p = min(1.0, 2 * (rarer + 1) / (samples + 1))
    return Difference(first, second, second - first, (float(low), float(high)), p)


def _resampled(statistic: Callable[..., np.ndarray], columns: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """The statistic of each resample, (samples,), drawn from (C, N) columns that stay together."""
    from scipy import stats

    columns = columns[:, np.lexsort(columns)]
    number = columns.shape[1]
    if number == 1:  # which scipy refuses
        return np.full(samples, statistic(*columns, axis=-1))
    result = stats.bootstrap(
        tuple(columns),
        statistic,
        n_resamples=samples,
        batch=max(1, MAX_DRAWS // number),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return result.bootstrap_distribution


def _ratio(sums: np.ndarray, totals: np.ndarray) -> np.ndarray:
    return np.where(totals > 0, sums / np.where(totals > 0, totals, 1.0), 0.0)
