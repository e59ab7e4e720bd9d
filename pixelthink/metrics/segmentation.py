"""gIoU and cIoU under a named protocol, as torchmetrics classes around `functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from pixelthink.metrics.counting import Count, get_count, key_digests, mask_scores
from pixelthink.metrics.functional import (
    Mask,
    ProtocolName,
    ciou_of_sums,
    get_protocol,
    mask_counts,
    mask_ious,
)


class _MaskMetric(Metric):
    """Reads masks; subclasses say what they sum up."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, protocol: ProtocolName, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.protocol = get_protocol(protocol)

    def update(
        self, predictions: Sequence[Mask], targets: Sequence[Mask], ignores: Sequence[Mask | None] | None = None
    ) -> None:
        """Adds masks, which may differ in size.

        Args:
            predictions: N masks, each bool (H, W).
            targets: N masks of the same sizes.
            ignores: N ignore regions or Nones; None means none at all.

        Raises:
            ValueError: numbers or sizes of masks that differ; nothing was added then.
        """
        regions = [None] * len(predictions) if ignores is None else ignores
        triples = zip(predictions, targets, regions, strict=True)
        self._add([mask_counts(*triple, self.protocol) for triple in triples])

    def _add(self, counts: list[tuple[int, int]]) -> None:
        raise NotImplementedError


class GIoU(_MaskMetric):
    """Mean of per-mask IoUs, in 0 to 1, each mask counted once (`MaskScores` can count objects); NaN before the first.

    Args:
        protocol: "lisa", "segzero" or "lens".
        kwargs: torchmetrics' options.
    """

    iou_sum: Tensor
    count: Tensor

    def __init__(self, protocol: ProtocolName, **kwargs: Any) -> None:
        super().__init__(protocol, **kwargs)
        self.add_state("iou_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, counts: list[tuple[int, int]]) -> None:
        ious = mask_ious([i for i, _ in counts], [u for _, u in counts], self.protocol)
        self.iou_sum += float(ious.sum())
        self.count += len(counts)

    def compute(self) -> Tensor:
        """gIoU, float64 ()."""
        return self.iou_sum / self.count


class CIoU(_MaskMetric):
    """Summed intersections by summed unions, in 0 to 1, each mask counted once, as in `GIoU`; NaN before the first.

    Args:
        protocol: "lisa", "segzero" or "lens".
        kwargs: torchmetrics' options.
    """

    intersection: Tensor
    union: Tensor
    count: Tensor

    def __init__(self, protocol: ProtocolName, **kwargs: Any) -> None:
        super().__init__(protocol, **kwargs)
        for name in ("intersection", "union", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, counts: list[tuple[int, int]]) -> None:
        self.intersection += sum(i for i, _ in counts)
        self.union += sum(u for _, u in counts)
        self.count += len(counts)

    def compute(self) -> Tensor:
        """cIoU, float64 ()."""
        known = int(self.count) > 0
        value = ciou_of_sums(int(self.intersection), int(self.union), self.protocol) if known else float("nan")
        return torch.tensor(value, dtype=torch.float64, device=self.union.device)


class MaskScores(Metric):
    """gIoU and cIoU with their 95 % bootstrap intervals, and how many they are of, from counted pixels.

    Every mask is kept, 24 bytes each and 16 more where objects are counted, because an interval is drawn from all of
    them. The numbers do not depend on the order of the masks or on how many processes counted them.

    Args:
        protocol: "lisa", "segzero" or "lens".
        bootstrap_samples: Resamples behind the intervals; 0 leaves them out.
        seed: Seed of the resamples.
        count: What counts once, "expression" or "object", see `counting`.
        kwargs: torchmetrics' options.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    intersections: list[Tensor]
    unions: list[Tensor]
    ious: list[Tensor]
    objects: list[Tensor]

    def __init__(
        self,
        protocol: ProtocolName,
        bootstrap_samples: int = 2000,
        seed: int = 0,
        count: Count = "expression",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.protocol = get_protocol(protocol)
        self.bootstrap_samples = bootstrap_samples
        self.seed = seed
        self.count = get_count(count)
        for name in ("intersections", "unions", "ious", *(["objects"] if count == "object" else [])):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        intersections: Sequence[int],
        unions: Sequence[int],
        ious: Sequence[float],
        objects: Sequence[str] | None = None,
    ) -> None:
        """Adds N masks.

        Args:
            intersections: Pixels, N.
            unions: Pixels, N.
            ious: N IoUs in 0 to 1, `functional.mask_ious` or 0 where the answer failed.
            objects: N keys of what was asked for, `counting.object_key`; only looked at where objects are counted.

        Raises:
            ValueError: arguments of different lengths, or no keys where objects are counted; nothing was added then.
        """
        if not len(intersections) == len(unions) == len(ious):
            raise ValueError(f"{len(intersections)} intersections, {len(unions)} unions and {len(ious)} IoUs")
        digests = counted_digests(self.count, objects, len(ious))
        device = self.device
        if digests is not None:
            self.objects.append(digests.to(device))
        self.intersections.append(torch.tensor(intersections, dtype=torch.int64, device=device))
        self.unions.append(torch.tensor(unions, dtype=torch.int64, device=device))
        self.ious.append(torch.tensor(ious, dtype=torch.float64, device=device))

    def compute(self) -> dict[str, Tensor]:
        """`n`, `giou`, `ciou` and, with resamples, `giou_ci95_low`, `giou_ci95_high` and the same of `ciou`; float64.

        Where objects are counted, `n` is their number, and `expressions` that of the masks. Empty before the first one.
        """
        shared, joined, ious = (_joined(state) for state in (self.intersections, self.unions, self.ious))
        if not ious.size:
            return {}
        objects = _joined(self.objects) if self.count == "object" else None
        values = mask_scores(
            *(shared, joined, ious, self.protocol), objects=objects, samples=self.bootstrap_samples, seed=self.seed
        )
        for name in [name for name in values if name.endswith("_ci95")]:
            values[f"{name}_low"], values[f"{name}_high"] = values.pop(name)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def counted_digests(count: Count, objects: Sequence[str] | None, number: int) -> Tensor | None:
    """Digests of the objects of N masks, int64 (N, 2), for a state; None where expressions are counted.

    Raises:
        ValueError: objects are counted, and there are not N keys.
    """
    if count == "expression":
        return None
    if objects is None or len(objects) != number:
        raise ValueError(f"objects are counted, but there are {len(objects or ())} keys of objects for {number} masks")
    return torch.from_numpy(key_digests(objects).copy())


def _joined(state: list[Tensor]) -> Any:
    """All values of a state, as an array."""
    return dim_zero_cat(state).cpu().numpy() if len(state) else torch.empty(0).numpy()
