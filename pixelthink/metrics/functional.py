"""Plain functions of segmentation and efficiency metrics; no state, no torchmetrics.

gIoU is the mean of per-mask IoUs, cIoU the ratio of summed intersections to summed unions. Published evaluators treat
ignored pixels and empty masks differently, and the same weights differ by up to 7 gIoU between them: a number without
its protocol is no number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

ProtocolName = Literal["lisa", "segzero", "lens"]
Mask = np.ndarray | torch.Tensor

RESAMPLES_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Protocol:
    """How an evaluator treats ignored pixels and empty masks.

    Attributes:
        name: The evaluator.
        ignored: Ignored pixels are "removed" from prediction and target, become part of the "target", or become
            "background" of the target.
        both_empty: IoU of a mask whose union is empty; also the cIoU where all unions are, except where `ciou_epsilon`
            makes that 0.
        iou_epsilon: Added to each mask's union.
        ciou_epsilon: Added to the sum of unions.
    """

    name: ProtocolName
    ignored: Literal["removed", "target", "background"]
    both_empty: float
    iou_epsilon: float = 0.0
    ciou_epsilon: float = 0.0


PROTOCOLS: dict[str, Protocol] = {
    "lisa": Protocol("lisa", ignored="removed", both_empty=1.0, iou_epsilon=1e-5, ciou_epsilon=1e-10),
    "segzero": Protocol("segzero", ignored="target", both_empty=0.0),
    "lens": Protocol("lens", ignored="background", both_empty=1.0),
}


def get_protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        ValueError: an unknown name; lists the known ones.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}, choose from {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def mask_counts(prediction: Mask, target: Mask, ignore: Mask | None, protocol: Protocol) -> tuple[int, int]:
    """Intersection and union of one mask pair.

    Args:
        prediction: bool (H, W).
        target: bool (H, W).
        ignore: Pixels to ignore, bool (H, W); None means none.
        protocol: What to do with ignored pixels.

    Returns:
        `(intersection, union)` in pixels.

    Raises:
        ValueError: shapes that differ.
    """
    found, truth = _as_bool(prediction), _as_bool(target)
    if found.shape != truth.shape:
        raise ValueError(f"prediction is {_size(found)} but target is {_size(truth)} (height×width)")
    if ignore is not None:
        void = _as_bool(ignore)
        if void.shape != truth.shape:
            raise ValueError(f"ignore is {_size(void)} but target is {_size(truth)} (height×width)")
        truth = truth | void if protocol.ignored == "target" else truth & ~void
        found = found & ~void if protocol.ignored == "removed" else found
    return int(np.count_nonzero(found & truth)), int(np.count_nonzero(found | truth))


def mask_ious(intersections: npt.ArrayLike, unions: npt.ArrayLike, protocol: Protocol) -> npt.NDArray[np.float64]:
    """IoU of each mask.

    Args:
        intersections: Pixels, (N,).
        unions: Pixels, (N,).
        protocol: Gives the IoU of an empty union.

    Returns:
        float64 (N,) in [0, 1].
    """
    shared, joined = np.asarray(intersections, dtype=np.float64), np.asarray(unions, dtype=np.float64)
    empty = joined == 0
    ratio = shared / np.where(empty, 1.0, joined + protocol.iou_epsilon)
    return np.where(empty, protocol.both_empty, ratio)


def giou(intersections: npt.ArrayLike, unions: npt.ArrayLike, protocol: Protocol) -> float:
    """Mean of per-mask IoUs; NaN without masks. Arguments as in `mask_ious`."""
    return exact_mean(mask_ious(intersections, unions, protocol))


def exact_mean(values: npt.ArrayLike) -> float:
    """Mean whose sum is rounded once, so that it is the same in any order and on any number of processes; else NaN."""
    array = np.asarray(values, dtype=np.float64)
    return math.fsum(array) / array.size if array.size else math.nan


def ciou(intersections: npt.ArrayLike, unions: npt.ArrayLike, protocol: Protocol) -> float:
    """Summed intersections by summed unions; NaN without masks. Arguments as in `mask_ious`."""
    shared, joined = np.asarray(intersections), np.asarray(unions)
    return ciou_of_sums(float(shared.sum()), float(joined.sum()), protocol) if joined.size else math.nan


def ciou_of_sums(intersection: float, union: float, protocol: Protocol) -> float:
    """cIoU of sums of pixels over at least one mask; where the union is empty as well, see `Protocol.both_empty`."""
    denominator = union + protocol.ciou_epsilon
    return intersection / denominator if denominator > 0 else protocol.both_empty


def efficiency_scores(
    tokens: float, rscore: float, giou: float, model_billions: float, gamma: float = 0.7
) -> tuple[float, float, float]:
    """ReasonSeg-Diff's efficiency metrics, recovered by fitting every published row (FACTS, section 1).

    `RST = 10·rscore / (B·√(N+1))`, `SAT = 100·giou / (B·√(N+1))`, `URSS = γ·SAT + (1−γ)·RST`.

    Args:
        tokens: Mean reasoning tokens N, 0 or more.
        rscore: Judge's rating of the reasoning, 0 to 10.
        giou: In 0 to 1 (the paper prints percent).
        model_billions: Parameters of the model B, in billions.
        gamma: Weight γ of segmentation against reasoning, 0 to 1.

    Returns:
        `(rst, sat, urss)`.

    Raises:
        ValueError: an argument out of its range, e.g. a gIoU in percent.
    """
    ranges = {
        "tokens": (tokens, 0.0, math.inf),
        "rscore": (rscore, 0.0, 10.0),
        "giou": (giou, 0.0, 1.0),
        "gamma": (gamma, 0.0, 1.0),
    }
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value}")
    if not model_billions > 0:
        raise ValueError(f"model_billions must be positive, got {model_billions}")
    cost = model_billions * math.sqrt(tokens + 1.0)
    rst, sat = 10.0 * rscore / cost, 100.0 * giou / cost
    return rst, sat, gamma * sat + (1.0 - gamma) * rst


def bootstrap_interval(
    values: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, or of a ratio of sums (Efron, 1979).

    What is drawn from is put in order first, so the interval depends on the seed but not on the order of the samples,
    nor on the number of processes that they came from.

    Args:
        values: (N,): per-mask IoUs for gIoU, intersections for cIoU.
        weights: None for the mean of `values`; for the ratio Σvalues/Σweights (cIoU: unions) the denominators, (N,),
            0 or more. Resamples whose denominators are all 0 count as 0.
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
    order = np.lexsort((bottom, top))
    top, bottom = top[order], bottom[order]
    generator = np.random.default_rng(seed)
    ratios = np.empty(samples)
    step = max(1, RESAMPLES_AT_ONCE // top.size)
    for start in range(0, samples, step):
        drawn = generator.integers(top.size, size=(min(step, samples - start), top.size))
        sums, totals = top[drawn].sum(axis=1), bottom[drawn].sum(axis=1)
        ratios[start : start + len(drawn)] = np.where(totals > 0, sums / np.where(totals > 0, totals, 1.0), 0.0)
    low, high = np.quantile(ratios, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def _as_bool(mask: Any) -> np.ndarray:
    array = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    return array.astype(bool, copy=False)


def _size(mask: np.ndarray) -> str:
    return "×".join(str(n) for n in mask.shape)
