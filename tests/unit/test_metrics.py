"""Metrics against golden values, numbers done by hand, and themselves on two processes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from pixelthink.geometry import CoordinateFrame, decode_rle
from pixelthink.metrics.bootstrap import bootstrap_interval
from pixelthink.metrics.counting import mask_scores
from pixelthink.metrics.functional import (
    PROTOCOLS,
    ciou_of_sums,
    efficiency_scores,
    exact_mean,
    get_protocol,
    mask_counts,
    mask_ious,
)
from pixelthink.metrics.measured import Measured, measure
from pixelthink.metrics.segmentation import SegmentationMetrics, metrics_document
from pixelthink.parsing import parse_completion
from pixelthink.types import Completion, Prediction, Prompt, Sample, Timings
from tests.support import GOLDENS, golden_rows

GOLDEN = golden_rows("segmentation_metrics.jsonl.gz")
EFFICIENCY = json.loads((GOLDENS / "paper_efficiency.json").read_text())
KEYS = ("prediction", "target", "ignore")


def strip(*pixels: int) -> np.ndarray:
    """Mask of one row of eight pixels."""
    mask = np.zeros((1, 8), dtype=bool)
    mask[0, list(pixels)] = True
    return mask


def answer(
    name: str,
    difficulty: float | None = None,
    *,
    pixels: tuple[int, int] = (1, 2),
    protocol: str = "segzero",
    failure: Any = None,
    tokens: int = 10,
) -> Measured:
    """A measured answer of `pixels` = (intersection, union)."""
    iou = float(mask_ious([pixels[0]], [pixels[1]], PROTOCOLS[protocol])[0])
    return Measured(name, difficulty, *pixels, iou, failure, (), tokens, 2, 12, 9)


@pytest.mark.parametrize("protocol", ["lisa", "segzero"])
@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: str(row["id"]))
def test_released_evaluators(row: dict[str, Any], protocol: Any) -> None:
    masks = [[decode_rle(item[key]) for item in row["items"]] for key in KEYS]
    rules = get_protocol(protocol)
    counts = [mask_counts(p, t, i, rules) for p, t, i in zip(*masks, strict=True)]
    pixels = [i for i, _ in counts], [u for _, u in counts]
    scores = mask_scores(*pixels, mask_ious(*pixels, rules), rules, samples=0)
    assert scores["giou"] == pytest.approx(row["expected"][protocol]["giou"], abs=1e-9)
    assert scores["ciou"] == pytest.approx(row["expected"][protocol]["ciou"], abs=1e-9)
    torches = [[torch.from_numpy(mask) for mask in column] for column in masks]
    assert [mask_counts(p, t, i, rules) for p, t, i in zip(*torches, strict=True)] == counts
    metric = SegmentationMetrics(protocol, bootstrap_samples=0)
    for start in (0, len(counts) // 2):
        part = counts[start : len(counts) if start else len(counts) // 2]
        metric.update([answer(f"{start + n}", pixels=pair, protocol=protocol) for n, pair in enumerate(part)])
    for name in ("giou", "ciou"):
        assert metric.compute()[name] == pytest.approx(row["expected"][protocol][name], abs=1e-9)


@pytest.mark.parametrize(
    ("protocol", "counts", "both_empty"),
    [("lisa", (1, 2), 1.0), ("segzero", (2, 4), 0.0), ("lens", (1, 3), 1.0)],
)
def test_protocols_by_hand(protocol: str, counts: tuple[int, int], both_empty: float) -> None:
    rules = PROTOCOLS[protocol]
    assert (
        mask_counts(strip(0, 1, 2), strip(0, 5), strip(2, 3, 5), rules)
        == {
            "lisa": (1, 2),  # found {0, 1}, truth {0}
            "segzero": (2, 5),  # found {0, 1, 2}, truth {0, 2, 3, 5}
            "lens": (1, 3),  # found {0, 1, 2}, truth {0}
        }[protocol]
    )
    assert mask_counts(strip(0, 1, 2), strip(0), strip(2, 3), rules) == counts
    assert mask_ious([0], [0], rules).tolist() == [both_empty]
    assert ciou_of_sums(0, 0, rules) == (0.0 if protocol == "lisa" else both_empty)


def test_shapes_and_names_are_checked() -> None:
    with pytest.raises(ValueError, match=r"prediction is 1×8 but target is 2×8"):
        mask_counts(strip(0), np.zeros((2, 8), dtype=bool), None, PROTOCOLS["lens"])
    with pytest.raises(ValueError, match=r"ignore is 2×8"):
        mask_counts(strip(0), strip(0), np.zeros((2, 8), dtype=bool), PROTOCOLS["lens"])
    with pytest.raises(ValueError, match="unknown protocol 'coco', choose from lisa, segzero, lens"):
        SegmentationMetrics("coco")  # type: ignore[arg-type]


@pytest.mark.parametrize("row", EFFICIENCY["rows"], ids=lambda row: f"{row['set']} {row['method']}")
def test_efficiency_equals_the_published_digits(row: dict[str, Any]) -> None:
    scores = efficiency_scores(
        row["tokens"], row["rscore"], row["giou_percent"] / 100, EFFICIENCY["model_billions"], EFFICIENCY["gamma"]
    )
    for value, name in zip(scores, ("rst", "sat", "urss"), strict=True):
        assert abs(value - row[name]) <= 0.005 + 1e-9, (name, value)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((10, 5, 60.0, 7), "giou"),
        ((-1, 5, 0.6, 7), "tokens"),
        ((10, 11, 0.6, 7), "rscore"),
        ((10, 5, 0.6, 0), "model_billions"),
        ((10, 5, float("nan"), 7), "giou"),
        ((10, 5, 0.6, 7, 2.0), "gamma"),
    ],
)
def test_efficiency_refuses(arguments: tuple[float, ...], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        efficiency_scores(*arguments)


def test_bootstrap() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 900)
    low, high = bootstrap_interval(values, samples=4000)
    spread = 1.96 * values.std() / 30  # the normal approximation, ample at n = 900
    assert (low, high) == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.006)
    assert (low, high) == bootstrap_interval(values, samples=4000)
    assert (low, high) != bootstrap_interval(values, samples=4000, seed=1)
    assert bootstrap_interval([0.5]) == (0.5, 0.5)
    assert bootstrap_interval([1, 2, 3], [2, 4, 6]) == (0.5, 0.5)  # the ratio does not depend on the draw
    assert bootstrap_interval([0, 0], [0, 0]) == (0.0, 0.0)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_of_a_ratio_covers_the_ratio_of_sums() -> None:
    rng = np.random.default_rng(1)
    unions = rng.integers(1, 1000, 300)
    intersections = rng.binomial(unions, 0.7)
    low, high = bootstrap_interval(intersections, unions)
    assert low < intersections.sum() / unions.sum() < high
    assert high - low < 0.02


@pytest.mark.parametrize("arguments", [([],), ([1.0], [1.0, 2.0]), ([[1.0]],)])
def test_bootstrap_refuses(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="bootstrap needs"):
        bootstrap_interval(*arguments)
    with pytest.raises(ValueError, match="0 < level < 1"):
        bootstrap_interval([1.0], level=95)


def failures(*causes: str | None) -> list[Measured]:
    return [answer(str(n), failure=cause) for n, cause in enumerate(causes)]


def test_parse_rate() -> None:
    metric = SegmentationMetrics("segzero", bootstrap_samples=0)
    metric.update(failures(None, "no_json", None, "no_json", "not_finite"))
    values = metric.compute()
    assert values["parse_rate"] == pytest.approx(0.4)
    assert (values["failures/no_json"], values["failures/not_finite"]) == (2, 1)
    assert "failures/no_answer" not in values  # what never occurred is no line in anybody's list
    with pytest.raises(ValueError, match="failure: unknown 'tired'"):
        metric.update(failures(None, "tired"))
    assert metric.compute()["n"] == 5
    metric.update(failures("image_unreadable", "image_missing", "segmenter_error"))
    assert metric.compute()["parse_rate"] == pytest.approx(3 / 6), "the segmenter's error counts as read, two had none"
    unasked = SegmentationMetrics("segzero", bootstrap_samples=0)
    unasked.update(failures("image_missing"))
    assert "parse_rate" not in unasked.compute()
    assert unasked.compute()["failures/image_missing"] == 1


def test_lengths_are_of_those_that_were_asked() -> None:
    lengths = {"reasoning_tokens": 6, "answer_tokens": 4, "response_tokens": 12, "words": 8}
    asked = Measured("a", None, 2, 4, 0.5, None, (), **lengths)
    lost = Measured("b", None, 0, 4, 0.0, "image_unreadable", (), **dict.fromkeys(lengths, 0))
    report = SegmentationMetrics("segzero", bootstrap_samples=10, model_billions=1.0)
    report.update([asked, lost])
    values = report.compute()
    assert {name: values[name] for name in lengths} == lengths
    assert (values["n"], values["giou"], values["parse_rate"]) == (2, 0.25, 1.0)
    assert values["sat"] == pytest.approx(25 / 7**0.5)


def test_by_level() -> None:
    metric = SegmentationMetrics("segzero", bootstrap_samples=0)
    pairs = [(1.0, 10), (3.5, 30), (None, 50), (3.4, 20)]
    metric.update([answer(str(n), level, tokens=tokens) for n, (level, tokens) in enumerate(pairs)])
    found = {name: value for name, value in metric.compute().items() if name.startswith("reasoning_tokens")}
    assert found == {"reasoning_tokens": 27.5, "reasoning_tokens/easy": 15, "reasoning_tokens/medium": 30}
    batch = metric([answer("last", 9.0, tokens=7)])
    assert (batch["reasoning_tokens"], batch["reasoning_tokens/hard"], batch["n"]) == (7.0, 7.0, 1)
    assert metric.compute()["reasoning_tokens"] == pytest.approx(117 / 5)
    metric.reset()
    metric.update([])
    assert metric.compute() == {}


def prediction(
    name: str, mask: np.ndarray, truth: np.ndarray | None, difficulty: float | None, text: str, tokens: int
) -> Prediction:
    sample = Sample(name, Image.new("RGB", (8, 1)), "q", truth, difficulty=difficulty)
    prompt = Prompt(sample, [], sample.image, CoordinateFrame((8, 1), (8, 1)), ())
    answer = parse_completion(text)
    completion = Completion((7, 8, 9), (-1.0,) * 3, text, "stop", tokens, None)
    timings = Timings(decoding_ms=20.0)
    return Prediction(prompt, completion, answer, mask, answer.failure, timings=timings)


ANSWER = '<answer>{"bbox": [0, 0, 3, 0], "points_1": [1, 0], "points_2": [2, 0]}</answer>'


def some_predictions() -> list[Prediction]:
    return [
        prediction("a", strip(0, 1), strip(0, 1), 2.0, ANSWER, 10),
        prediction("b", strip(0, 1, 2), strip(0), 6.0, ANSWER, 40),
        prediction("c", strip(), strip(1, 2, 3, 4), 2.0, "nothing", 20),
        prediction("d", strip(0), strip(0, 1), None, ANSWER, 6),
    ]


EXPECTED = {
    "n": 4,
    "n/easy": 2,
    "n/hard": 1,
    "giou": (1 + 1 / 3 + 0 + 1 / 2) / 4,
    "giou/easy": 0.5,
    "giou/hard": 1 / 3,
    "ciou": (2 + 1 + 0 + 1) / (2 + 3 + 4 + 2),
    "ciou/easy": 2 / 6,
    "ciou/hard": 1 / 3,
    "reasoning_tokens": 19.0,
    "reasoning_tokens/easy": 15.0,
    "reasoning_tokens/hard": 40.0,
    "response_tokens": 3.0,
    "response_tokens/easy": 3.0,
    "response_tokens/hard": 3.0,
    "words": (3 * 11 + 1) / 4,
    "words/easy": 6.0,
    "words/hard": 11.0,
    "parse_rate": 0.75,
    "parse_rate/easy": 0.5,
    "parse_rate/hard": 1.0,
    "failures/no_json": 1.0,
    "failures/no_json/easy": 1.0,
    "decoding_ms": 20.0,
    "decoding_ms/easy": 20.0,
    "decoding_ms/hard": 20.0,
    "sat": 100 * (11 / 24) / (2 * 20**0.5),
    "sat/easy": 50 / (2 * 4),
    "sat/hard": 100 / 3 / (2 * 41**0.5),
}


def measured(predictions: list[Prediction]) -> list[Measured]:
    return [measure(one, PROTOCOLS["segzero"]) for one in predictions]


def report_of(predictions: list[Prediction], *, at_once: int = 4) -> dict[str, float]:
    """Metrics of predictions, added so many at once."""
    report = SegmentationMetrics("segzero", bootstrap_samples=200, model_billions=2.0)
    for start in range(0, len(predictions), at_once):
        report.update(measured(predictions[start : start + at_once]))
    return report.compute()


def test_report_by_hand() -> None:
    values = report_of(some_predictions())
    assert {name: value for name, value in values.items() if "_ci95_" not in name} == pytest.approx(EXPECTED, abs=1e-12)
    assert report_of(some_predictions(), at_once=1) == values
    assert report_of(some_predictions()[::-1], at_once=3) == values
    low, high = bootstrap_interval([1, 1 / 3, 0, 1 / 2], samples=200)
    assert (values["giou_ci95_low"], values["giou_ci95_high"]) == (low, high)
    low, high = bootstrap_interval([2, 1, 0, 1], [2, 3, 4, 2], samples=200)
    assert (values["ciou_ci95_low"], values["ciou_ci95_high"]) == (low, high)
    with pytest.raises(ValueError, match="sample 'x' has no mask"):
        measured([prediction("x", strip(), None, None, ANSWER, 1)])


def test_a_report_can_be_reset() -> None:
    report = SegmentationMetrics("lens", bootstrap_samples=10)
    report.update(measured(some_predictions()))
    report.reset()
    report.update(measured(some_predictions()[:1]))
    assert (report.compute()["n"], report.compute()["giou"]) == (1, 1.0)


@pytest.mark.parametrize("protocol", ["lisa", "segzero", "lens"])
def test_a_failed_answer_scores_0_where_nothing_was_to_be_found_too(protocol: str) -> None:
    failed = prediction("f", strip(), strip(), None, "I cannot", 1)
    found_none = replace(failed, failure=None)
    assert measure(failed, PROTOCOLS[protocol]).iou == 0.0
    assert measure(found_none, PROTOCOLS[protocol]).iou == PROTOCOLS[protocol].both_empty


def test_the_document_of_a_report() -> None:
    document = metrics_document(report_of(some_predictions()))
    assert (document["n"], document["failures"], document["failures/easy"]) == (4, {"no_json": 1}, {"no_json": 1})
    assert document["flaws"] == {}
    values = report_of(some_predictions())
    assert document["giou_ci95"] == [values["giou_ci95_low"], values["giou_ci95_high"]]
    assert document["ciou_ci95/hard"] == [pytest.approx(1 / 3)] * 2
    assert not [name for name in document if "low" in name or "high" in name]


SHARES = ([[0, 1], [2, 3]], [[0], [3, 2, 1]], [[0, 1, 2, 3], []])


def _report_on(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    predictions, results = some_predictions(), []
    for share in SHARES:
        report = SegmentationMetrics("segzero", bootstrap_samples=200, model_billions=2.0)
        for index in share[rank]:
            report.update(measured([predictions[index]]))
        results.append(report.compute())
    (Path(folder) / f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    spawn: Callable[..., Any] = mp.spawn
    spawn(_report_on, args=(2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(results) == len(SHARES)
        for result in results:
            assert result == report_of(some_predictions())  # to the last bit


def test_nothing_seen_is_not_a_number() -> None:
    assert math.isnan(exact_mean([]))
    assert SegmentationMetrics("lisa").compute() == {}
