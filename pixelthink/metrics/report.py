"""The metrics of one evaluation, from measured samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pixelthink.failures import FLAWS, was_asked
from pixelthink.metrics.counting import Count
from pixelthink.metrics.functional import ProtocolName
from pixelthink.metrics.levels import ByLevel
from pixelthink.metrics.measured import Measured
from pixelthink.metrics.reasoning import Averages, Efficiency, Occurrences, ParseRate
from pixelthink.metrics.segmentation import MaskScores
from pixelthink.types import Timings

STAGES = ("preparation_ms", "prefill_ms", "decoding_ms", "segmentation_ms", "total_ms")
LENGTHS = ("reasoning_tokens", "answer_tokens", "response_tokens", "words")


@dataclass(frozen=True)
class JudgedBy:
    """What a report has to know of the judge.

    Attributes:
        failures: Every reason for which a rating may be missing.
        prefix: Stands before the names of its metrics where they are not the paper's.
    """

    failures: tuple[str, ...]
    prefix: str = ""


class SegmentationReport(nn.Module):
    """Masks, lengths, failures, efficiency and time; each overall and by difficulty level.

    Args:
        protocol: Whose rules for ignored pixels and empty masks apply.
        bootstrap_samples: Resamples behind the 95 % intervals; 0 leaves them out.
        bootstrap_seed: Seed of the resamples.
        model_billions: Parameters of the model in billions, for the efficiency metrics; None leaves them out.
        judge: Who rates the reasoning, if anybody.
        count: What counts once in `n`, gIoU, cIoU and SAT, "expression" or "object", see `counting`; all else is of
            answers, and there is one to each expression.
    """

    def __init__(
        self,
        protocol: ProtocolName,
        bootstrap_samples: int = 2000,
        bootstrap_seed: int = 0,
        model_billions: float | None = None,
        judge: JudgedBy | None = None,
        count: Count = "expression",
    ) -> None:
        super().__init__()
        prefix = judge.prefix if judge is not None else ""
        self.masks = ByLevel(MaskScores(protocol, bootstrap_samples, bootstrap_seed, count))
        self.averages = ByLevel(Averages((*LENGTHS, *STAGES)))
        self.parsed = ByLevel(ParseRate())
        self.flaws = ByLevel(Occurrences("flaws", FLAWS))
        self.efficiency = ByLevel(Efficiency(model_billions, judge is not None, prefix, count=count))
        self.unrated = ByLevel(Occurrences("judge_failures", judge.failures)) if judge is not None else None

    def update(self, samples: Sequence[Measured]) -> None:
        """Adds samples, failed ones included."""
        difficulties = [sample.difficulty for sample in samples]
        ious, objects = [sample.iou for sample in samples], [sample.object_key for sample in samples]
        self.masks.update(difficulties, [s.intersection for s in samples], [s.union for s in samples], ious, objects)
        self.averages.update(difficulties, [_row(sample) for sample in samples])
        self.parsed.update(difficulties, [sample.failure for sample in samples])
        self.flaws.update(difficulties, [sample.flaws for sample in samples])
        tokens = [sample.reasoning_tokens if was_asked(sample.failure) else None for sample in samples]
        ratings = [sample.rscore for sample in samples]
        self.efficiency.update(difficulties, tokens, ious, ratings, objects)
        if self.unrated is not None:
            self.unrated.update(difficulties, [[] if s.judge_failure is None else [s.judge_failure] for s in samples])

    def compute(self) -> dict[str, float]:
        """Name → value, `NAME` overall and `NAME/LEVEL` for each level that occurred; synced over processes.

        Names: `n`, where objects are counted `expressions` too, `giou`, `ciou` and their `…_ci95_low` and
        `…_ci95_high`; means of `LENGTHS` and `STAGES`; `samples_per_second`; `parse_rate`; `failures/CAUSE`,
        `flaws/FLAW` and `judge_failures/CAUSE` that occurred; `sat` and what else `Efficiency` gives.
        """
        self.update([])  # so that the states of a process without samples have the types that the others' have
        values = {name: float(value) for metric in self._metrics() for name, value in metric.compute().items()}
        speeds = {name: 1000 / ms for name, ms in values.items() if name.startswith("total_ms") and ms > 0}
        return values | {name.replace("total_ms", "samples_per_second"): speed for name, speed in speeds.items()}

    def reset(self) -> None:
        """Forgets all samples."""
        for metric in self._metrics():
            metric.reset()

    def _metrics(self) -> list[ByLevel]:
        always = [self.masks, self.averages, self.parsed, self.flaws, self.efficiency]
        return always if self.unrated is None else [*always, self.unrated]


def _row(sample: Measured) -> list[float | None]:
    """Lengths and times of a sample, in the order of `LENGTHS` and `STAGES`; None of one that was not asked."""
    timings: Timings = sample.timings
    asked = was_asked(sample.failure)
    values: dict[str, Any] = {name: getattr(sample, name) if asked else None for name in LENGTHS}
    return [*values.values(), *(getattr(timings, stage) for stage in STAGES)]


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
            document[name] = int(value) if key in ("n", "rated", "expressions") else value
    return {"failures": {}, "flaws": {}} | document
