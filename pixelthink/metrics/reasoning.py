"""How long the reasoning is and how many answers can be used, as torchmetrics classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from pixelthink.parsing import Failure


class ReasoningTokens(Metric):
    """Mean number of tokens inside `<think>`; NaN before the first response."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    tokens: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("tokens", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, counts: Sequence[int]) -> None:
        """Adds responses, given by their numbers of reasoning tokens."""
        self.tokens += sum(counts)
        self.count += len(counts)

    def compute(self) -> Tensor:
        """Mean, float64 ()."""
        return self.tokens.double() / self.count


class ParseRate(Metric):
    """Share of answers that could be parsed, and the number of failures by cause.

    Args:
        causes: Every cause that may occur; the parser's by default.
        kwargs: torchmetrics' options.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    failures: Tensor
    count: Tensor

    def __init__(self, causes: Sequence[str] = get_args(Failure), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.causes = tuple(causes)
        self.add_state("failures", torch.zeros(len(self.causes), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, failures: Sequence[str | None]) -> None:
        """Adds answers, each given by why it failed, or None.

        Raises:
            ValueError: a cause that was not announced; nothing was added then.
        """
        for failure in failures:
            if failure is not None and failure not in self.causes:
                raise ValueError(f"unknown cause of failure {failure!r}, known: {', '.join(self.causes)}")
        for failure in failures:
            if failure is not None:
                self.failures[self.causes.index(failure)] += 1
        self.count += len(failures)

    def compute(self) -> dict[str, Tensor]:
        """`parse_rate`, float64 () and NaN before the first answer, and `failures/CAUSE`, int64 (), for each cause."""
        rate = 1.0 - self.failures.sum().double() / self.count
        by_cause = {f"failures/{cause}": self.failures[i] for i, cause in enumerate(self.causes)}
        return {"parse_rate": rate, **by_cause}
