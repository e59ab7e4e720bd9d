"""Two runs on the same samples: what differs, how sure that is, and which samples got better or worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from pixelthink.data.validation import ObjectTargets
from pixelthink.errors import UserError
from pixelthink.evaluation.finished_run import FinishedRun, row_mask
from pixelthink.evaluation.results import Row
from pixelthink.failures import was_asked, was_read
from pixelthink.metrics.bootstrap import Difference, paired_bootstrap
from pixelthink.metrics.counting import Count, Grouping, get_count, object_key
from pixelthink.metrics.functional import Protocol, ProtocolName, get_protocol, mask_counts, mask_ious
from pixelthink.types import LEVELS

Subset = Literal["all", "common"]

METRICS = ("giou", "ciou", "reasoning_tokens", "response_tokens", "parse_rate")
SAME = 1e-9
"""IoUs that differ by no more are equal."""


class Scored(NamedTuple):
    """One sample of one run: its row, and its numbers under the comparison's protocol."""

    row: Row
    intersection: int
    union: int
    iou: float


class Pair(NamedTuple):
    """One sample in both runs."""

    a: Scored
    b: Scored

    @property
    def gain(self) -> float:
        """IoU of the second run minus that of the first."""
        return self.b.iou - self.a.iou


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same samples, compared.

    Attributes:
        a: The first run.
        b: The second.
        protocol: Both were scored under it.
        count: What counted once, "expression" or "object".
        n: "all" and each level that occurs → how many expressions or objects were counted.
        expressions: The same → how many samples.
        subset: "all": they have the same samples; "common": those that both have were compared.
        pairs: The samples, in the first run's order.
        differences: "all" and each level → metric → difference.
        resamples: Resamples of the bootstrap.
        seed: Its seed.
    """

    a: FinishedRun
    b: FinishedRun
    protocol: str
    count: Count
    n: dict[str, int]
    expressions: dict[str, int]
    subset: Subset
    pairs: tuple[Pair, ...]
    differences: dict[str, dict[str, Difference]]
    resamples: int
    seed: int

    def changed(self) -> list[Pair]:
        """Samples whose IoU differs, the greatest gain first."""
        return sorted((pair for pair in self.pairs if abs(pair.gain) > SAME), key=lambda p: (-p.gain, p.a.row["id"]))


def compare(
    a: FinishedRun,
    b: FinishedRun,
    *,
    subset: Subset = "all",
    protocol: ProtocolName | None = None,
    count: Count | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compares two evaluations of the same samples.

    Args:
        a: The first run.
        b: The second.
        subset: "common" compares the samples that both have, where one has others too.
        protocol: Scores both runs' masks again, under this protocol; None: both must have been scored under one.
        count: Counts both runs again; None: both must have been counted alike. Where objects are counted, the bootstrap
            draws objects for every metric.
        resamples: Resamples of the bootstrap.
        seed: Its seed.

    Raises:
        UserError: runs that cannot be compared: of different protocols, or counts, or samples, or questions, targets,
            levels or objects of a sample; or without known targets or objects. One line that says which.
    """
    name = protocol or _common_protocol(a, b)
    counted = get_count(count or _common_count(a, b))
    rows = _paired_rows(a, b, subset)
    if counted == "object":
        _check_objects(a, b, rows)
    rules = get_protocol(name)
    pairs = [Pair(_scored(row, rules), _scored(other, rules)) for row, other in rows]
    levels = {"all": pairs} | {level: [pair for pair in pairs if pair.a.row["level"] == level] for level in LEVELS}
    levels = {level: of_level for level, of_level in levels.items() if of_level}
    groupings = {level: _grouping(of_level, counted) for level, of_level in levels.items()}
    return Comparison(
        a,
        b,
        protocol=name,
        count=counted,
        n={level: len(grouping.sizes) for level, grouping in groupings.items()},
        expressions={level: len(of_level) for level, of_level in levels.items()},
        subset=subset,
        pairs=tuple(pairs),
        differences={level: _differences(levels[level], groupings[level], resamples, seed) for level in levels},
        resamples=resamples,
        seed=seed,
    )


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON: differences by level, and every sample whose IoU changed, the greatest gain first."""
    changed = comparison.changed()
    keys = ("policy", "checkpoint", "protocol")
    runs = {
        name: {"folder": str(run.folder), **{key: run.header.get(key) for key in keys}}
        for name, run in (("a", comparison.a), ("b", comparison.b))
    }
    return {
        **runs,
        "protocol": comparison.protocol,
        "count": comparison.count,
        "subset": comparison.subset,
        "n": comparison.n,
        **({"expressions": comparison.expressions} if comparison.count == "object" else {}),
        "bootstrap": {"samples": comparison.resamples, "seed": comparison.seed},
        "differences": {
            level: {metric: asdict(difference) for metric, difference in of_level.items()}
            for level, of_level in comparison.differences.items()
        },
        "better": sum(pair.gain > 0 for pair in changed),
        "worse": sum(pair.gain < 0 for pair in changed),
        "same": len(comparison.pairs) - len(changed),
        "changed": [_pair_document(pair) for pair in changed],
    }


def _pair_document(pair: Pair) -> dict[str, Any]:
    both = pair._asdict().items()
    return {
        **{key: pair.a.row[key] for key in ("id", "question", "level")},
        "gain": pair.gain,
        **{f"iou_{run}": scored.iou for run, scored in both},
        **{f"reasoning_tokens_{run}": scored.row["reasoning_tokens"] for run, scored in both},
        **{f"failure_{run}": scored.row["failure"] for run, scored in both},
    }


def _grouping(pairs: Sequence[Pair], count: Count) -> Grouping:
    """Which of the pairs count together."""
    rows = [pair.a.row for pair in pairs]
    return Grouping.of(len(rows), [object_key(row["id"], row["object"]) for row in rows] if count == "object" else None)


def _common_protocol(a: FinishedRun, b: FinishedRun) -> str:
    names = [run.header.get("protocol") or run.metrics.get("protocol") for run in (a, b)]
    if names[0] != names[1] or names[0] is None:
        raise UserError(
            f"{a.folder} was scored under {names[0] or 'no protocol'}, {b.folder} under {names[1] or 'no protocol'}; "
            "with --protocol, both are scored anew under one"
        )
    return names[0]


def _common_count(a: FinishedRun, b: FinishedRun) -> str:
    """What both runs counted; runs of before there was a choice counted expressions."""
    first, second = (run.header.get("count") or run.metrics.get("count") or "expression" for run in (a, b))
    if first != second:
        raise UserError(
            f"{a.folder} was counted per {first}, {b.folder} per {second}; with --count, both are counted anew"
        )
    return first


def _check_objects(a: FinishedRun, b: FinishedRun, rows: Sequence[tuple[Row, Row]]) -> None:
    """Makes sure that both runs know what each sample asks for, the same in both, and of each object one target.

    Raises:
        UserError: they do not; one line that names the sample.
    """
    targets = ObjectTargets()
    for row, other in rows:
        for run, one in ((a, row), (b, other)):
            if "object" not in one:
                raise UserError(f"sample {one['id']!r} has no 'object' in {run.folder}, so objects cannot be counted")
        if row["object"] != other["object"]:
            raise UserError(f"sample {row['id']!r} has another object in {b.folder} than in {a.folder}")
        if row["object"] is not None and (target := row_mask(row, "target")) is not None:
            targets.add_mask(repr(row["object"]), repr(row["id"]), target)


def _paired_rows(a: FinishedRun, b: FinishedRun, subset: Subset) -> list[tuple[Row, Row]]:
    """The rows of the samples to compare, with what must be equal checked."""
    of_b = {row["id"]: row for row in b.rows}
    common = [(row, of_b[row["id"]]) for row in a.rows if row["id"] in of_b]
    if not common:
        raise UserError(f"{a.folder} and {b.folder} have no sample in common")
    if subset == "all" and (len(common) < len(a.rows) or len(common) < len(b.rows)):
        raise UserError(
            f"{a.folder} and {b.folder} have {len(common)} samples in common, but {len(a.rows) - len(common)} and "
            f"{len(b.rows) - len(common)} of their own; --subset=common compares the former"
        )
    for row, other in common:
        missing = row["prediction"] is None or other["prediction"] is None  # no image: nothing else is known either
        for key in ("question", "target", "ignore", "level"):
            if not missing and row.get(key) != other.get(key):
                raise UserError(f"sample {row['id']!r} has another {key} in {b.folder} than in {a.folder}")
    return common


def _scored(row: Row, protocol: Protocol) -> Scored:
    """Scores a row's masks as the evaluation does: a failure has IoU 0, a missing image no pixels."""
    found, target = row_mask(row, "prediction"), row_mask(row, "target")
    if found is None:
        return Scored(row, 0, 0, 0.0)
    if target is None:
        raise UserError(f"sample {row['id']!r} has no target, so its answers cannot be compared")
    shared, joined = mask_counts(found, target, row_mask(row, "ignore"), protocol)
    iou = 0.0 if row["failure"] is not None else float(mask_ious([shared], [joined], protocol)[0])
    return Scored(row, shared, joined, iou)


def _differences(pairs: Sequence[Pair], grouping: Grouping, resamples: int, seed: int) -> dict[str, Difference]:
    found: dict[str, Difference] = {}
    for metric in METRICS:
        (a, a_weights), (b, b_weights) = (_values(metric, side, grouping) for side in zip(*pairs, strict=True))
        found[metric] = paired_bootstrap(a, b, a_weights, b_weights, samples=resamples, seed=seed)
    return found


def _values(metric: str, scored: Sequence[Scored], grouping: Grouping) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators of a metric, one for each group.

    gIoU and cIoU average the expressions of a group. Lengths and parse rate are of answers: groups add theirs up, and
    a sample that was not asked, because its image is missing, is left out.
    """
    if metric == "giou":
        return grouping.means([s.iou for s in scored]), np.ones(len(grouping.sizes))
    if metric == "ciou":
        shared, joined = grouping.sums([s.intersection for s in scored]), grouping.sums([s.union for s in scored])
        return shared / grouping.sizes, joined / grouping.sizes
    asked = np.array([was_asked(s.row["failure"]) for s in scored], dtype=np.float64)
    read = metric == "parse_rate"
    values = np.array([float(was_read(s.row["failure"]) if read else s.row[metric]) for s in scored])
    numerators, answers = (np.bincount(grouping.groups, weights=column) for column in (values * asked, asked))
    return numerators, answers
