"""Any metric, overall and by difficulty level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.wrappers.abstract import WrapperMetric

from pixelthink.types import LEVELS, difficulty_level


class ByLevel(WrapperMetric):
    """A metric over all samples and over those of each level; a level without samples is not reported.

    Args:
        metric: A fresh metric whose `update` takes sequences with one item a sample; it is copied for each level.
        name: What to call its value, where it gives one value and not a dict.
        kwargs: torchmetrics' options.
    """

    def __init__(self, metric: Metric, name: str = "value", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.parts = nn.ModuleDict({part: metric.clone() for part in ("all", *LEVELS)})

    def _metrics(self) -> list[tuple[str, Metric]]:
        return [(part, cast("Metric", metric)) for part, metric in self.parts.items()]

    def update(self, difficulties: Sequence[float | None], *items: Sequence[Any]) -> None:
        """Adds samples.

        Args:
            difficulties: One a sample; a sample without one counts overall only.
            items: The metric's own arguments, each with one item a sample.

        Raises:
            ValueError: arguments of different lengths.
        """
        if any(len(column) != len(difficulties) for column in items):
            raise ValueError(f"{len(difficulties)} difficulties for {[len(column) for column in items]} items")
        levels = [None if value is None else difficulty_level(value) for value in difficulties]
        for part, metric in self._metrics():
            rows = [i for i, level in enumerate(levels) if part in ("all", level)]
            metric.update(*([column[i] for i in rows] for column in items))  # with no rows too: it was asked

    def compute(self) -> dict[str, Tensor]:
        """`NAME` and `NAME/LEVEL`, for each value of the metric that exists, i.e. is not NaN."""
        values: dict[str, Tensor] = {}
        for part, metric in self._metrics():
            result = metric.compute()
            named = result if isinstance(result, dict) else {self.name: result}
            suffix = "" if part == "all" else f"/{part}"
            values |= {f"{name}{suffix}": value for name, value in named.items() if not torch.isnan(value).any()}
        return values

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The values of this batch alone, which is added as well."""
        batch = self.clone()
        batch.reset()
        batch.update(*args, **kwargs)
        self.update(*args, **kwargs)
        return batch.compute()

    def reset(self) -> None:
        """Forgets every sample."""
        for _, metric in self._metrics():
            metric.reset()
        super().reset()
