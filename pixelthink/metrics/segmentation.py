"""gIoU and cIoU under a named protocol, as torchmetrics classes around `functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from pixelthink.metrics.functional import Mask, ProtocolName, ciou_of_sums, get_protocol, mask_counts, mask_ious


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
    """Mean of per-mask IoUs, in 0 to 1; NaN before the first mask.

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
    """Summed intersections by summed unions, in 0 to 1; NaN before the first mask.

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
