"""How long the reasoning is, how good, and how many answers can be used, as torchmetrics classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from pixelthink.failures import CAUSES, was_asked, was_read
from pixelthink.metrics.counting import Count, Counting, get_count
from pixelthink.metrics.functional import efficiency_scores, exact_mean
from pixelthink.metrics.segmentation import counted_digests


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


class Averages(Metric):
    """Means of several columns of numbers, each over the samples that have it.

    Args:
        names: What the columns are called.
        kwargs: torchmetrics' options.
    """

    is_differentiable = False
    full_state_update = False
    rows: list[Tensor]

    def __init__(self, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, rows: Sequence[Sequence[float | None]]) -> None:
        """Adds samples, each with one number a column, or None where nobody measured it."""
        table = torch.tensor([[torch.nan if value is None else value for value in row] for row in rows])
        self.rows.append(table.to(self.device, torch.float64).reshape(-1, len(self.names)))

    def compute(self) -> dict[str, Tensor]:
        """Mean of each column that has a number, float64 ()."""
        table = dim_zero_cat(self.rows).cpu().numpy() if len(self.rows) else np.empty((0, len(self.names)))
        known = {name: column[~np.isnan(column)] for name, column in zip(self.names, table.T, strict=True)}
        return {
            name: torch.tensor(exact_mean(column), dtype=torch.float64) for name, column in known.items() if column.size
        }


class Occurrences(Metric):
    """How often each of several things occurred, as `PREFIX/NAME`; what never occurred is not reported.

    Args:
        prefix: What they are called together.
        names: All that may occur.
        kwargs: torchmetrics' options.
    """

    is_differentiable = False
    full_state_update = False
    found: Tensor

    def __init__(self, prefix: str, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prefix = prefix
        self.names = tuple(names)
        self.add_state("found", torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, occurred: Sequence[Sequence[str]]) -> None:
        """Adds samples, each given by what occurred.

        Raises:
            ValueError: something that was not announced; nothing was added then.
        """
        names = [name for sample in occurred for name in sample]
        for name in names:
            if name not in self.names:
                raise ValueError(f"{self.prefix}: unknown {name!r}, known: {', '.join(self.names)}")
        for name in names:
            self.found[self.names.index(name)] += 1

    def compute(self) -> dict[str, Tensor]:
        """`PREFIX/NAME`, int64 (), for each name that occurred."""
        return {f"{self.prefix}/{name}": n for name, n in zip(self.names, self.found, strict=True) if n}


class ParseRate(Occurrences):
    """Share of responses whose answer could be read, and the number of failures by cause.

    A cause that is no fault of the answer's form, as a segmenter's error, is counted but does not lower the share; a
    sample that was not asked, for want of its image, is in neither part of it.

    Args:
        causes: Every cause that may occur.
        kwargs: torchmetrics' options.
    """

    higher_is_better = True
    count: Tensor

    def __init__(self, causes: Sequence[str] = CAUSES, **kwargs: Any) -> None:
        super().__init__("failures", causes, **kwargs)
        self.unasked = [index for index, cause in enumerate(self.names) if not was_asked(cause)]
        self.unread = [index for index, cause in enumerate(self.names) if was_asked(cause) and not was_read(cause)]
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, failures: Sequence[str | None]) -> None:  # type: ignore[override]
        """Adds answers, each given by why it failed, or None.

        Raises:
            ValueError: a cause that was not announced; nothing was added then.
        """
        super().update([[] if failure is None else [failure] for failure in failures])
        self.count += len(failures)

    def compute(self) -> dict[str, Tensor]:
        """`parse_rate`, float64 () and NaN before the first sample; `failures/CAUSE`, int64 (), where it occurred.

        There is no rate where none of the samples was asked.
        """
        answers = self.count - self.found[self.unasked].sum()
        rate = {"parse_rate": 1.0 - self.found[self.unread].sum().double() / answers}
        return {**(rate if answers or not self.count else {}), **super().compute()}


class Efficiency(Metric):
    """ReasonSeg-Diff's efficiency of the reasoning: RScore, RST, SAT and URSS, see `functional.efficiency_scores`.

    A sample that the judge gave no rating counts 0, so that no score rises by leaving samples out; `rscore_rated` is
    the mean of those that were rated.

    Args:
        model_billions: Parameters of the model, in billions (7 for Qwen2.5-VL-7B); None leaves out what needs it.
        judged: Whether there is a judge; else only SAT is known.
        prefix: Stands before the names of what a judge has a say in, where its ratings are not the paper's.
        gamma: Weight of segmentation against reasoning in URSS.
        count: What counts once in the gIoU of SAT, "expression" or "object", see `counting`; tokens and ratings are of
            every expression either way.
        kwargs: torchmetrics' options.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    tokens: list[Tensor]
    ious: list[Tensor]
    ratings: list[Tensor]
    objects: list[Tensor]

    def __init__(
        self,
        model_billions: float | None,
        judged: bool = False,
        prefix: str = "",
        gamma: float = 0.7,
        count: Count = "expression",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model_billions, self.judged, self.prefix, self.gamma = model_billions, judged, prefix, gamma
        self.count = get_count(count)
        for name in ("tokens", "ious", "ratings", *(["objects"] if count == "object" else [])):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        tokens: Sequence[int | None],
        ious: Sequence[float],
        ratings: Sequence[float | None],
        objects: Sequence[str] | None = None,
    ) -> None:
        """Adds N samples.

        Args:
            tokens: Reasoning tokens of each, or None where it was not asked; their mean is of the others.
            ious: IoU of each, 0 to 1.
            ratings: A judge's 0 to 10 for each, or None.
            objects: N keys of what was asked for, `counting.object_key`; only looked at where objects are counted.

        Raises:
            ValueError: there are no such keys where objects are counted; nothing was added then.
        """
        if (digests := counted_digests(self.count, objects, len(ious))) is not None:
            self.objects.append(digests.to(self.device))
        for state, column in ((self.tokens, tokens), (self.ious, ious), (self.ratings, ratings)):
            numbers = [torch.nan if value is None else float(value) for value in column]
            state.append(torch.tensor(numbers, dtype=torch.float64, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """`sat` and, with a judge, `rscore`, `rst`, `urss`, `rated`, `rscore_rated`; float64. Empty before a sample."""
        tokens, ious, ratings = (dim_zero_cat(s).cpu().numpy() if len(s) else np.empty(0) for s in self._columns())
        if not tokens.size:
            return {}
        values: dict[str, float] = {}
        rated = ratings[~np.isnan(ratings)]
        rscore = math.fsum(rated) / tokens.size
        if self.judged:
            values |= {"rscore": rscore, "rated": float(rated.size), "rscore_rated": exact_mean(rated)}
        if self.model_billions is not None:
            objects = dim_zero_cat(self.objects).cpu().numpy() if self.count == "object" else None
            giou = exact_mean(Counting.of(ious.size, objects).means(ious))
            length = exact_mean(tokens[~np.isnan(tokens)]) if not np.isnan(tokens).all() else 0.0
            rst, sat, urss = efficiency_scores(length, rscore, giou, self.model_billions, self.gamma)
            values |= {"rst": rst, "urss": urss} if self.judged else {}
            values["sat"] = sat
        return {
            name if name == "sat" else f"{self.prefix}{name}": torch.tensor(value, dtype=torch.float64)
            for name, value in values.items()
        }

    def _columns(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        return self.tokens, self.ious, self.ratings
