"""All metrics of an evaluation, as one torchmetrics class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from pixelthink.failures import CAUSES, FLAWS, was_asked, was_read
from pixelthink.judges.base import JUDGE_FAILURES
from pixelthink.metrics.counting import Count, Grouping, get_count, key_digests, mask_scores
from pixelthink.metrics.functional import ProtocolName, efficiency_scores, exact_mean, get_protocol
from pixelthink.metrics.measured import Measured
from pixelthink.types import LEVELS, difficulty_level

STAGES = ("preparation_ms", "prefill_ms", "decoding_ms", "segmentation_ms", "total_ms")
LENGTHS = ("reasoning_tokens", "answer_tokens", "response_tokens", "words")
CODES: dict[str, Sequence[str]] = {"level": LEVELS, "failure": CAUSES, "judge_failure": JUDGE_FAILURES}
"""Columns that hold the position of a name."""
COLUMNS = ("intersection", "union", "iou", "rscore", *CODES, *FLAWS, *LENGTHS, *STAGES)

HEADLINES = {
    "tokens easy": "reasoning_tokens/easy",
    "medium": "reasoning_tokens/medium",
    "hard": "reasoning_tokens/hard",
    "all": "reasoning_tokens",
    "gIoU": "giou",
    "gIoU easy": "giou/easy",
    "gIoU hard": "giou/hard",
    "cIoU": "ciou",
    "parse rate": "parse_rate",
}
"""Headings and metrics of a table that compares policies."""

Columns = dict[str, np.ndarray]
"""Column → one number a sample, float64 (N,), NaN where there is none; and `objects`, int64 (N, 2)."""


class SegmentationMetrics(Metric):
    """Masks, lengths, failures, efficiency and time; each overall and by difficulty level.

    Every sample is kept, as one row of `COLUMNS` and 16 bytes for its object, because intervals are drawn from all of
    them. The numbers do not depend on the order of the samples or on the number of processes.

    Args:
        protocol: "lisa", "segzero" or "lens": the rules for ignored pixels and empty masks.
        bootstrap_samples: Resamples behind the 95 % intervals; 0 leaves them out.
        bootstrap_seed: Seed of the resamples.
        model_billions: Parameters of the model in billions (7 for Qwen2.5-VL-7B), for the efficiency metrics; None
            leaves them out.
        judge_prefix: Stands before the names of the metrics in which a judge's ratings take part: "" for ratings on
            the paper's scale. None: there is no judge.
        count: What counts once in `n`, gIoU, cIoU and SAT, "expression" or "object", see `counting`. Everything else
            is of answers, one to each expression.
        kwargs: torchmetrics' options.
    """

    is_differentiable = False
    full_state_update = False
    rows: list[Tensor]
    objects: list[Tensor]

    def __init__(
        self,
        protocol: ProtocolName,
        bootstrap_samples: int = 2000,
        bootstrap_seed: int = 0,
        model_billions: float | None = None,
        judge_prefix: str | None = None,
        count: Count = "expression",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.protocol = get_protocol(protocol)
        self.bootstrap_samples, self.bootstrap_seed = bootstrap_samples, bootstrap_seed
        self.model_billions, self.judge_prefix, self.count = model_billions, judge_prefix, get_count(count)
        for name in ("rows", "objects"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.update([])

    def reset(self) -> None:
        """Forgets all samples."""
        super().reset()
        self.update([])  # so that states have their type and width in a process without samples too

    def update(self, samples: Sequence[Measured]) -> None:
        """Adds samples, failed ones included.

        Raises:
            ValueError: a failure or flaw of an unknown name; nothing was added then.
        """
        rows = torch.tensor([_row(sample) for sample in samples], dtype=torch.float64, device=self.device)
        digests = torch.from_numpy(key_digests([sample.object_key for sample in samples]).copy())
        self.rows.append(rows.reshape(-1, len(COLUMNS)))
        self.objects.append(digests.to(self.device))

    def compute(self) -> dict[str, float]:
        """Name → value, `NAME` overall and `NAME/LEVEL` for each level that occurred; empty before the first sample.

        Names: `n`, where objects are counted `expressions` too, `both_empty` where it occurred, `giou`, `ciou` and
        their `…_ci95_low` and `…_ci95_high`; means of `LENGTHS` and `STAGES`; `parse_rate`; `failures/CAUSE`, `flaws/FLAW` and
        `judge_failures/CAUSE` that occurred; see `efficiency` for its names; `samples_per_second`.
        """
        table, objects = (dim_zero_cat(state).cpu().numpy() for state in (self.rows, self.objects))
        columns: Columns = {**dict(zip(COLUMNS, table.T, strict=True)), "objects": objects}
        chosen = {"": np.full(len(table), True)}
        chosen |= {f"/{level}": columns["level"] == index for index, level in enumerate(LEVELS)}
        parts = {
            suffix: {name: column[rows] for name, column in columns.items()}
            for suffix, rows in chosen.items()
            if rows.any()
        }
        values: dict[str, float] = {}
        for metrics in (
            self._scores,
            both_empty,
            means,
            parse_rate,
            flaw_counts,
            self._efficiency,
            self._judge_failures,
        ):
            for suffix, part in parts.items():
                values |= {f"{name}{suffix}": float(value) for name, value in metrics(part).items()}
        speeds = {name: 1000 / ms for name, ms in values.items() if name.startswith("total_ms") and ms > 0}
        return values | {name.replace("total_ms", "samples_per_second"): speed for name, speed in speeds.items()}

    def _scores(self, columns: Columns) -> dict[str, float]:
        values = mask_scores(
            columns["intersection"].astype(np.int64),
            columns["union"].astype(np.int64),
            columns["iou"],
            self.protocol,
            objects=columns["objects"] if self.count == "object" else None,
            samples=self.bootstrap_samples,
            seed=self.bootstrap_seed,
        )
        for name in [name for name in values if name.endswith("_ci95")]:
            values[f"{name}_low"], values[f"{name}_high"] = values.pop(name)
        return values

    def _efficiency(self, columns: Columns) -> dict[str, float]:
        objects = columns["objects"] if self.count == "object" else None
        return efficiency(columns, objects, self.model_billions, self.judge_prefix)

    def _judge_failures(self, columns: Columns) -> dict[str, int]:
        counts = _occurrences(columns["judge_failure"], JUDGE_FAILURES) if self.judge_prefix is not None else {}
        return {f"judge_failures/{cause}": number for cause, number in counts.items()}


def both_empty(columns: Columns) -> dict[str, float]:
    """`both_empty`, how often a readable answer and the target are both without a pixel, where it occurred."""
    number = int(((columns["union"] == 0) & np.isnan(columns["failure"])).sum())
    return {"both_empty": number} if number else {}


def means(columns: Columns) -> dict[str, float]:
    """Means of `LENGTHS` and `STAGES`, each over the samples that have it."""
    known = {name: columns[name][~np.isnan(columns[name])] for name in (*LENGTHS, *STAGES)}
    return {name: exact_mean(column) for name, column in known.items() if column.size}


def parse_rate(columns: Columns) -> dict[str, float]:
    """`parse_rate`, the share of answers that could be read, and `failures/CAUSE`, a number, where it occurred.

    A cause that is not the form of the answer, as an error of the segmenter, is counted but does not lower the share.
    A sample that was not asked because its image is missing is left out of the share; if all were, there is none.
    """
    causes = _occurrences(columns["failure"], CAUSES)
    answers = len(columns["failure"]) - sum(number for cause, number in causes.items() if not was_asked(cause))
    unread = sum(number for cause, number in causes.items() if was_asked(cause) and not was_read(cause))
    rate = {"parse_rate": 1.0 - unread / answers} if answers else {}
    return rate | {f"failures/{cause}": number for cause, number in causes.items()}


def flaw_counts(columns: Columns) -> dict[str, float]:
    """`flaws/FLAW`, how often it occurred, where it did."""
    return {f"flaws/{flaw}": number for flaw in FLAWS if (number := columns[flaw].sum())}


def efficiency(
    columns: Columns, objects: np.ndarray | None, model_billions: float | None, judge_prefix: str | None
) -> dict[str, float]:
    """Efficiency of the reasoning, see `functional.efficiency_scores`.

    A sample that the judge gave no rating counts 0, so that no score rises by leaving samples out.

    Args:
        columns: At least one sample.
        objects: The object of each sample, where objects are counted in gIoU; None counts expressions.
        model_billions: As in `SegmentationMetrics`.
        judge_prefix: As in `SegmentationMetrics`.

    Returns:
        `rscore`, `rated` (how many samples were) and `rscore_rated` (their mean, if there are any), where there is a
        judge; `sat` where the size of the model is known; `rst` and `urss` where both are.
    """
    ratings, tokens = (columns[name][~np.isnan(columns[name])] for name in ("rscore", "reasoning_tokens"))
    rscore = math.fsum(ratings) / len(columns["rscore"])
    judged: dict[str, float] = {"rscore": rscore, "rated": len(ratings)}
    if len(ratings):
        judged["rscore_rated"] = exact_mean(ratings)
    values = {}
    if model_billions is not None:
        giou = exact_mean(Grouping.of(len(columns["iou"]), objects).means(columns["iou"]))
        length = exact_mean(tokens) if len(tokens) else 0.0
        rst, sat, urss = efficiency_scores(length, rscore, giou, model_billions)
        judged |= {"rst": rst, "urss": urss}
        values["sat"] = sat
    named = {} if judge_prefix is None else {f"{judge_prefix}{name}": value for name, value in judged.items()}
    return named | values


def metrics_document(values: dict[str, float]) -> dict[str, Any]:
    """The values as `metrics.json` has them: intervals as pairs, occurrences by name in one object a level.

    `giou_ci95_low/hard` and its `_high` become `giou_ci95/hard: [low, high]`, `failures/no_json/hard` becomes an entry
    of `failures/hard`; `failures` and `flaws` are there even where nothing occurred.
    """
    document: dict[str, Any] = {}
    for name, value in values.items():
        key, _, level = name.partition("/")
        if key in ("failures", "flaws", "judge_failures"):
            what, _, of_level = level.partition("/")
            document.setdefault(f"{key}/{of_level}" if of_level else key, {})[what] = int(value)
        elif key.endswith("_ci95_low"):
            high = values[name.replace("_low", "_high")]
            document[name.replace("_low", "")] = [value, high]
        elif not key.endswith("_ci95_high"):
            document[name] = int(value) if key in ("n", "rated", "expressions", "both_empty") else value
    return {"failures": {}, "flaws": {}} | document


def _row(sample: Measured) -> list[float]:
    """A sample's numbers in the order of `COLUMNS`; NaN for None, and for the lengths of one that was not asked."""
    level = None if sample.difficulty is None else difficulty_level(sample.difficulty)
    names = {"level": level, "failure": sample.failure, "judge_failure": sample.judge_failure}
    codes = [_code(kind, name, CODES[kind]) for kind, name in names.items()]
    flaws = [_code("flaw", flaw, FLAWS) for flaw in sample.flaws]
    lengths = [getattr(sample, name) if was_asked(sample.failure) else None for name in LENGTHS]
    numbers = [
        sample.intersection,
        sample.union,
        sample.iou,
        sample.rscore,
        *codes,
        *map(flaws.count, range(len(FLAWS))),
    ]
    numbers += [*lengths, *(getattr(sample.timings, stage) for stage in STAGES)]
    return [math.nan if number is None else float(number) for number in numbers]


def _code(kind: str, name: str | None, known: Sequence[str]) -> int | None:
    """Position of a name among the known ones."""
    if name is not None and name not in known:
        raise ValueError(f"{kind}: unknown {name!r}, known: {', '.join(known)}")
    return None if name is None else known.index(name)


def _occurrences(codes: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Name → how often its position occurs, where it does."""
    counts = {name: int((codes == index).sum()) for index, name in enumerate(names)}
    return {name: number for name, number in counts.items() if number}
