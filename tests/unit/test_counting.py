"""Counting per object: numbers done by hand, plain numpy on random masks, any order, two processes, and the tool."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from pixelthink.data.validation import ObjectTargets
from pixelthink.evaluation.config import EvaluationConfig
from pixelthink.evaluation.evaluator import headline
from pixelthink.geometry import encode_rle
from pixelthink.metrics.bootstrap import bootstrap_interval
from pixelthink.metrics.counting import Grouping, mask_scores, object_key
from pixelthink.metrics.functional import (
    PROTOCOLS,
    Protocol,
    ciou_of_sums,
    exact_mean,
    mask_counts,
    mask_ious,
)
from pixelthink.metrics.measured import Measured
from pixelthink.metrics.segmentation import SegmentationMetrics, metrics_document
from pixelthink.types import Sample
from tests.unit.test_score_masks import lines, run

SEGZERO = PROTOCOLS["segzero"]


def expression(name: str, owner: str | None, pixels: tuple[int, int], level: float | None = 2.0) -> Measured:
    """A measured answer of `pixels` = (intersection, union)."""
    iou = float(mask_ious([pixels[0]], [pixels[1]], SEGZERO)[0])
    return Measured(name, level, *pixels, iou, None, (), 10, 2, 12, 9, object_id=owner)


def by_hand() -> list[Measured]:
    """Three questions about the cup, one easy and two hard; one about the dog; one whose sample is its own object."""
    return [
        expression("c1", "cup", (10, 10)),
        expression("d1", "dog", (1, 4)),
        expression("c2", "cup", (5, 10), 6.0),
        replace(expression("c3", "cup", (0, 20), 7.0), failure="no_json", reasoning_tokens=40),
        expression("cup", None, (3, 4)),
    ]


def report_of(samples: Sequence[Measured], count: Any = "object", at_once: int = 2) -> dict[str, float]:
    report = SegmentationMetrics("segzero", bootstrap_samples=200, model_billions=2.0, count=count)
    for start in range(0, len(samples), at_once):
        report.update(samples[start : start + at_once])
    return report.compute()


def test_a_report_by_hand() -> None:
    values = report_of(by_hand())
    assert (values["n"], values["expressions"]) == (3, 5)
    assert values["giou"] == pytest.approx(((1 + 0.5 + 0) / 3 + 1 / 4 + 3 / 4) / 3, abs=1e-15)
    assert values["ciou"] == pytest.approx((15 / 3 + 1 + 3) / (40 / 3 + 4 + 4), abs=1e-15)
    assert (values["n/easy"], values["expressions/easy"]) == (3, 3)
    assert values["giou/easy"] == pytest.approx((1 + 1 / 4 + 3 / 4) / 3)  # of the cup only its easy expression
    assert (values["n/hard"], values["expressions/hard"]) == (1, 2)
    assert (values["giou/hard"], values["ciou/hard"]) == pytest.approx((0.25, 5 / 30))
    # failures, tokens and parse rate are of answers
    assert (values["failures/no_json"], values["parse_rate"], values["reasoning_tokens"]) == (1, 0.8, 16.0)
    assert values["sat"] == pytest.approx(100 * values["giou"] / (2 * 17**0.5))
    low, high = bootstrap_interval([0.5, 0.25, 0.75], samples=200)
    assert (values["giou_ci95_low"], values["giou_ci95_high"]) == pytest.approx((low, high))
    low, high = bootstrap_interval([5, 1, 3], [40 / 3, 4, 4], samples=200)
    assert (values["ciou_ci95_low"], values["ciou_ci95_high"]) == pytest.approx((low, high))
    document = metrics_document(values)
    assert (document["n"], document["expressions"], document["failures"]) == (3, 5, {"no_json": 1})
    said = headline(EvaluationConfig(count="object"), values)
    assert said.startswith("protocol segzero, N = 3 objects of 5 expressions: gIoU 0.5000 [")


def test_counted_by_expression_the_objects_do_not_matter() -> None:
    plain = [replace(sample, object_id=None) for sample in by_hand()]
    values = report_of(by_hand(), "expression")
    assert values == report_of(plain, "expression")
    assert "expressions" not in values
    assert (values["n"], values["giou"]) == (5, pytest.approx((1 + 1 / 4 + 1 / 2 + 0 + 3 / 4) / 5))


def test_with_one_expression_an_object_both_ways_agree_to_the_last_bit() -> None:
    generator = np.random.default_rng(0)
    unions = generator.integers(1, 10**6, 300)
    pixels = zip(generator.binomial(unions, 0.6).tolist(), unions.tolist(), strict=True)
    samples = [expression(f"{n}", f"o{n}" if n % 2 else None, p, 1.0 + n % 9) for n, p in enumerate(pixels)]
    counted = report_of(samples, at_once=50)
    assert {name: value for name, value in counted.items() if "expressions" not in name} == report_of(
        samples, "expression"
    )
    assert counted["expressions"] == 300


def test_neither_order_nor_batches_matter() -> None:
    generator = np.random.default_rng(1)
    unions = generator.integers(1, 10**6, 200)
    pixels = list(zip(generator.binomial(unions, 0.3).tolist(), unions.tolist(), strict=True))
    samples = [expression(f"{n}", f"o{generator.integers(40)}", p, None) for n, p in enumerate(pixels)]
    first = report_of(samples, at_once=7)
    for _ in range(3):
        shuffled = [samples[i] for i in generator.permutation(200)]
        assert report_of(shuffled, at_once=int(generator.integers(1, 60))) == first


def plain_numpy(
    masks: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], owners: Sequence[str], protocol: str, seed: int
) -> dict[str, Any]:
    """gIoU and cIoU per object with their intervals, straight from the definitions."""
    of_object: dict[str, list[tuple[float, float, float]]] = {}
    for (found, target, ignore), owner in zip(masks, owners, strict=True):
        if protocol == "lisa":
            found, target = found & ~ignore, target & ~ignore
        else:
            target = target | ignore if protocol == "segzero" else target & ~ignore
        shared, joined = float((found & target).sum()), float((found | target).sum())
        empty = {"lisa": 1.0, "segzero": 0.0, "lens": 1.0}[protocol]
        iou = empty if joined == 0 else shared / (joined + (1e-5 if protocol == "lisa" else 0))
        of_object.setdefault(owner, []).append((iou, shared, joined))
    means = np.array([np.mean(rows, axis=0) for rows in of_object.values()])
    epsilon = 1e-10 if protocol == "lisa" else 0.0
    drawn = np.random.default_rng(seed).integers(len(means), size=(4000, len(means)))
    resampled = means[drawn].sum(axis=1)
    intervals = np.quantile([resampled[:, 0] / len(means), resampled[:, 1] / resampled[:, 2]], [0.025, 0.975], axis=1)
    return {
        "n": len(means),
        "giou": means[:, 0].mean(),
        "ciou": means[:, 1].sum() / (means[:, 2].sum() + epsilon),
        "giou_ci95": intervals[:, 0],
        "ciou_ci95": intervals[:, 1],
    }


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_random_masks_against_plain_numpy(protocol: Protocol) -> None:
    generator = np.random.default_rng(5)
    targets = {f"o{n}": generator.random((6, 7)) < generator.choice([0.0, 0.2, 0.6]) for n in range(30)}
    owners = [str(owner) for owner in generator.choice(list(targets), 120)]
    masks = [
        (generator.random((6, 7)) < generator.choice([0.0, 0.5]), targets[owner], generator.random((6, 7)) < 0.1)
        for owner in owners
    ]
    masks += [(masks[0][0] & False,) * 3]  # both empty, an object of its own
    owners += ["nothing"]
    expected = plain_numpy(masks, owners, protocol.name, seed=9)
    counts = [mask_counts(*triple, protocol) for triple in masks]
    shared, joined = [i for i, _ in counts], [u for _, u in counts]
    ious = mask_ious(shared, joined, protocol)
    scores = mask_scores(shared, joined, ious, protocol, objects=owners, samples=4000)
    assert (scores["n"], scores["expressions"]) == (expected["n"], 121)
    assert scores["giou"] == pytest.approx(expected["giou"], abs=1e-12)
    assert scores["ciou"] == pytest.approx(expected["ciou"], abs=1e-12)
    for name in ("giou_ci95", "ciou_ci95"):  # other random numbers, so only nearly
        assert scores[name] == pytest.approx(expected[name], abs=0.01)
    metric = SegmentationMetrics(protocol.name, 4000, count="object")
    samples = [
        Measured(str(n), None, *counts[n], float(ious[n]), None, (), 1, 1, 1, 1, object_id=owner)
        for n, owner in enumerate(owners)
    ]
    metric.update(samples[:50])
    metric.update(samples[50:])
    values = metric.compute()
    assert (values["giou"], values["ciou"]) == (scores["giou"], scores["ciou"])
    assert (values["giou_ci95_low"], values["ciou_ci95_high"]) == (*(scores["giou_ci95"][0], scores["ciou_ci95"][1]),)


def test_objects_widen_the_interval_of_answers_that_depend_on_each_other() -> None:
    ious = np.repeat(np.random.default_rng(2).random(50), 6)  # six equal answers to each of 50 objects
    owners = np.repeat(np.arange(50), 6).astype(str)
    pixels = np.round(1000 * ious).astype(int), np.full(300, 1000)
    wide = mask_scores(*pixels, ious, SEGZERO, objects=owners)["giou_ci95"]
    narrow = mask_scores(*pixels, ious, SEGZERO)["giou_ci95"]
    assert (wide[1] - wide[0]) / (narrow[1] - narrow[0]) == pytest.approx(6**0.5, rel=0.1)


def test_weighted_sums_are_exact() -> None:
    counting = Grouping.of(6, ["a", "b", "b", "b", "c", "a"])
    assert counting.weighted_sum([2**53, 1, 1, 1, 0, 2]) == float(2**52 + 2)  # 2^52 + 1 + 1
    assert counting.means([0.1, 0.2, 0.3, 0.4, 0.5, 0.1]).tolist() == [0.1, exact_mean([0.2, 0.3, 0.4]), 0.5]
    ones = Grouping.of(2, ["x", "y"])
    assert ones.weighted_sum([2**53, 1]) == float(2**53 + 1)
    assert ciou_of_sums(4, 9, SEGZERO) == ones.weighted_sum([3, 1]) / ones.weighted_sum([4, 5])


def test_keys_of_samples_and_objects_never_meet() -> None:
    assert len({object_key("a", None), object_key("b", "a"), object_key("sample a", "sample a")}) == 3


def test_what_is_refused() -> None:
    wrong: Any = "objects"
    with pytest.raises(ValueError, match="unknown count 'objects', choose from expression, object"):
        SegmentationMetrics("lens", count=wrong)
    with pytest.raises(ValueError, match="1 objects for 2 expressions"):
        mask_scores([1, 1], [2, 2], [0.5, 0.5], SEGZERO, objects=["a"])
    with pytest.raises(ValueError, match="got 1, 2 and 1"):
        mask_scores([1], [2, 2], [0.5], SEGZERO)


def test_two_targets_of_one_object_are_refused() -> None:
    def sample(name: str, owner: str | None, pixel: int) -> Sample:
        mask = np.arange(8).reshape(2, 4) == pixel
        return Sample(name, Image.new("RGB", (4, 2)), "q", mask, object_id=owner)

    here, there = ObjectTargets(), ObjectTargets()
    for one in (sample("a", "o", 1), sample("b", "o", 1), sample("c", None, 2), sample("d", "p", 2)):
        here.add(one)
    with pytest.raises(ValueError, match="samples 'a' and 'e' ask for the object 'o', but have different targets"):
        here.add(sample("e", "o", 2))
    there.add(sample("f", "p", 3))
    with pytest.raises(ValueError, match="samples 'd' and 'f' ask for the object 'p', but have"):
        here.merge(there.known)


SHARES = ([[0, 2, 4], [1, 3]], [[3], [4, 1, 0, 2]], [[0, 1, 2, 3, 4], []])


def _report_on(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    results = []
    for share in SHARES:
        samples = by_hand()
        results.append(report_of([samples[index] for index in share[rank]]))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    spawn: Callable[..., Any] = mp.spawn
    spawn(_report_on, args=(2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        assert results == [report_of(by_hand())] * len(SHARES)  # to the last bit


def mask(*pixels: int) -> dict[str, Any]:
    """RLE of a row of eight pixels."""
    return encode_rle(np.isin(np.arange(8), pixels)[None])


ROWS: list[dict[str, Any]] = [
    {"id": 1, "object": "cup", "prediction": mask(0, 1), "target": mask(0, 1), "difficulty": 2.0},  # 2 of 2
    {"id": 2, "object": "cup", "prediction": mask(0), "target": mask(0, 1), "difficulty": 6.0},  # 1 of 2
    {"id": 3, "object": "cup", "prediction": None, "target": None, "failure": "image_missing"},  # 0 of 0
    {"id": 4, "object": 7, "prediction": mask(0, 3), "target": mask(0), "difficulty": 2.0},  # 1 of 2
    {"id": 5, "object": "7", "prediction": mask(4), "target": mask(5)},  # 0 of 2
    {"id": 7, "object": None, "prediction": mask(6), "target": mask(6)},  # 1 of 1
]


def test_the_tool_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path / "in.jsonl", *ROWS)
    code, out, _ = run(capsys, "--protocol", "segzero", "--count", "object", "--input", path)
    result = json.loads(out)
    assert (code, result["count"], result["n"], result["expressions"]) == (0, "object", 4, 6)
    assert result["giou"] == pytest.approx((0.5 + 0.5 + 0 + 1) / 4)
    assert result["ciou"] == pytest.approx((3 / 3 + 1 + 0 + 1) / (4 / 3 + 2 + 2 + 1))
    assert result["failures"] == {"image_missing": 1}
    assert (result["levels"]["easy"]["n"], result["levels"]["easy"]["giou"]) == (2, 0.75)
    assert (result["levels"]["hard"]["n"], result["levels"]["hard"]["expressions"]) == (1, 1)
    plain = json.loads(run(capsys, "--protocol", "segzero", "--input", path)[1])
    assert list(plain) == ["protocol", "n", "giou", "ciou", "giou_ci95", "ciou_ci95", "bootstrap", "failures", "levels"]
    assert plain["n"] == 6


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 9, "prediction": mask(0), "target": mask(0)}, ":7: no 'object', which --count object needs"),
        ({"id": 9, "object": True, "prediction": mask(0), "target": mask(0)}, ":7: 'object' must be text, a whole"),
        (
            {"id": 9, "object": "cup", "prediction": mask(0), "target": mask(5)},
            ':7: samples 1 and 9 ask for the object "cup", but have different targets',
        ),
    ],
)
def test_the_tool_names_a_row_without_a_usable_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], message: str
) -> None:
    path = lines(tmp_path / "in.jsonl", *ROWS, row)
    code, out, err = run(capsys, "--protocol", "lens", "--count", "object", "--input", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert run(capsys, "--protocol", "lens", "--input", path)[0] == 0  # per expression nobody asks for it
