"""What counts once: an expression (one question), or an object with all expressions that ask for it.

Where objects are counted, the expressions of an object are averaged first: gIoU is the mean over objects of the mean
IoU of their expressions, and in cIoU an expression weighs 1 / (expressions of its object). So an object that was
described ten times counts as much as one that was described once. A bootstrap draws objects, because the answers to
several descriptions of one object are not independent. With one expression an object, both ways give equal numbers.

Every sum is exact, or rounded once, so numbers depend neither on the order of the expressions nor on the number of
processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from pixelthink.errors import UserError
from pixelthink.metrics.bootstrap import bootstrap_interval
from pixelthink.metrics.functional import Protocol, ciou_of_sums, exact_mean

Count = Literal["expression", "object"]


def get_count(name: str) -> Count:
    """The count of a name.

    Raises:
        UserError: an unknown name; lists the known ones.
    """
    if name not in get_args(Count):
        raise UserError(f"unknown count {name!r}, choose from {', '.join(get_args(Count))}")
    return cast("Count", name)


def object_key(sample_id: str, object_id: str | None) -> str:
    """Key of the object that a sample asks for; a sample without an `object_id` is an object of its own."""
    return f"sample {sample_id}" if object_id is None else f"object {object_id}"


def key_digests(keys: Sequence[str]) -> npt.NDArray[np.int64]:
    """Keys as 128-bit digests, int64 (N, 2), which processes can exchange; equal keys have equal digests."""
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys)
    return np.frombuffer(digests, dtype=np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class Grouping:
    """N expressions in M groups; a group counts once.

    Attributes:
        groups: Group of each expression, int64 (N,).
        sizes: Expressions of each group, int64 (M,), at least 1.
    """

    groups: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, number: int, objects: npt.ArrayLike | None = None) -> Grouping:
        """Groups N = `number` expressions by `objects`, (N,) keys or (N, 2) digests; None: each is its own group.

        Raises:
            ValueError: other than N objects.
        """
        if objects is None:
            return cls(np.arange(number), np.ones(number, dtype=np.int64))
        keys = np.asarray(objects)
        if len(keys) != number:
            raise ValueError(f"{len(keys)} objects for {number} expressions")
        _, groups, sizes = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
        return cls(groups.reshape(-1), sizes)

    def sums(self, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Sum of whole numbers, (N,), in each group, int64 (M,)."""
        totals = np.zeros(self.sizes.shape, dtype=np.int64)
        np.add.at(totals, self.groups, np.asarray(values, dtype=np.int64))
        return totals

    def means(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Mean of numbers, (N,), in each group, float64 (M,); each sum is rounded once."""
        inside = np.asarray(values, dtype=np.float64)[np.argsort(self.groups, kind="stable")]
        ends = np.cumsum(self.sizes)
        return np.array([exact_mean(inside[end - size : end]) for size, end in zip(self.sizes, ends, strict=True)])

    def weighted_sum(self, values: npt.ArrayLike) -> float:
        """Sum of whole numbers, (N,), each divided by the size of its group; rounded once."""
        totals = self.sums(values)
        parts = (Fraction(int(totals[self.sizes == size].sum()), int(size)) for size in np.unique(self.sizes))
        return float(sum(parts, Fraction(0)))


def mask_scores(
    intersections: npt.ArrayLike,
    unions: npt.ArrayLike,
    ious: npt.ArrayLike,
    protocol: Protocol,
    *,
    objects: npt.ArrayLike | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """gIoU and cIoU of N expressions, with their 95 % bootstrap intervals.

    Args:
        intersections: Pixels, (N,).
        unions: Pixels, (N,).
        ious: IoUs, (N,): `functional.mask_ious`, or 0 where an answer failed.
        protocol: The rules for empty masks.
        objects: The object of each, as in `Grouping.of`; None counts by expression.
        samples: Resamples behind the intervals; 0 leaves these out.
        seed: Seed of the resamples.

    Returns:
        `n`, how many were counted; where that is objects, `expressions` too; `giou`, `ciou`, and `giou_ci95` and
        `ciou_ci95`, each `(low, high)`.

    Raises:
        ValueError: no expressions, or arguments of different lengths.
    """
    numbers = {name: len(np.asarray(column)) for name, column in (("i", intersections), ("u", unions), ("iou", ious))}
    if len(set(numbers.values())) > 1 or not numbers["iou"]:
        raise ValueError("scores need as many intersections, unions and IoUs, got {i}, {u} and {iou}".format(**numbers))
    grouping = Grouping.of(numbers["iou"], objects)
    means = grouping.means(ious)
    values: dict[str, Any] = {"n": len(means)}
    if objects is not None:
        values["expressions"] = numbers["iou"]
    values["giou"] = exact_mean(means)
    values["ciou"] = ciou_of_sums(grouping.weighted_sum(intersections), grouping.weighted_sum(unions), protocol)
    if samples:
        shared, joined = (grouping.sums(column) / grouping.sizes for column in (intersections, unions))
        values["giou_ci95"] = bootstrap_interval(means, samples=samples, seed=seed)
        values["ciou_ci95"] = bootstrap_interval(shared, joined, samples=samples, seed=seed)
    return values
