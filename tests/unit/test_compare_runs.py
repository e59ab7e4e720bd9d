"""Two runs compared: against hand-made cases, every possible resample, and scipy's bootstrap; and what is refused."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import scipy.stats

from pixelthink.evaluation.comparison import compare, comparison_document
from pixelthink.evaluation.finished_run import read_run
from pixelthink.geometry import encode_rle
from pixelthink.metrics.bootstrap import paired_bootstrap
from pixelthink.metrics.counting import Count
from tests.support import ROOT

Row = dict[str, Any]


def row(name: str, columns: int, level: str | None = "easy", tokens: int = 10, **changes: Any) -> Row:
    """A sample whose target is the left 4 of 10 columns, of which `columns` were found (0 to 10, from the left)."""
    found, target = np.zeros((3, 10), dtype=bool), np.zeros((3, 10), dtype=bool)
    found[:, :columns], target[:, :4] = True, True
    return {
        "id": name,
        "question": f"where is {name}?",
        "level": level,
        "response": "",
        "failure": None,
        "prediction": encode_rle(found),
        "target": encode_rle(target),
        "ignore": None,
        "iou": -1.0,  # computed anew
        "reasoning_tokens": tokens,
        "response_tokens": tokens + 5,
    } | changes


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run's folder."""

    def write(name: str, *rows: Row, protocol: str = "segzero", **header: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        (folder / "run.json").write_text(json.dumps({"protocol": protocol, **header}), encoding="utf-8")
        return folder

    return write


def test_a_case_by_hand(run: Callable[..., Path]) -> None:
    a = run("a", row("x", 4), row("y", 2, "hard", 30), row("z", 4, "hard", failure="no_json"))
    b = run("b", row("z", 8, "hard", 20), row("x", 4, tokens=4), row("y", 0, "hard", 6))
    document = comparison_document(compare(read_run(a), read_run(b), resamples=50))
    assert document["n"] == {"all": 3, "easy": 1, "hard": 2}
    overall = document["differences"]["all"]
    # IoU: x 4/4 → 4/4, y 2/4 → 0/4, z failed → 4/8
    assert (overall["giou"]["a"], overall["giou"]["b"]) == (pytest.approx(0.5), pytest.approx(0.5))
    # three rows a mask: (12+6+12)/(12+12+12) and (12+0+12)/(12+12+24)
    assert overall["ciou"]["a"] == pytest.approx(30 / 36)
    assert overall["ciou"]["b"] == pytest.approx(24 / 48)
    assert overall["reasoning_tokens"]["difference"] == pytest.approx((4 + 6 + 20) / 3 - (10 + 30 + 10) / 3)
    assert overall["parse_rate"]["difference"] == pytest.approx(1 / 3)
    easy = document["differences"]["easy"]
    assert easy["giou"] == {"a": 1.0, "b": 1.0, "difference": 0.0, "ci95": (0.0, 0.0), "p": 1.0}
    assert easy["reasoning_tokens"]["ci95"] == (-6.0, -6.0)
    assert easy["reasoning_tokens"]["p"] == pytest.approx(2 / 51)
    assert (document["better"], document["worse"], document["same"]) == (1, 1, 1)
    assert [(c["id"], c["gain"]) for c in document["changed"]] == [("z", 0.5), ("y", -0.5)]
    assert document["changed"][0]["failure_a"] == "no_json"


@pytest.mark.parametrize("weighted", [False, True])
def test_the_interval_is_that_of_all_possible_resamples(weighted: bool) -> None:
    generator = np.random.default_rng(1)
    values, weights = generator.random((2, 5)), generator.random((2, 5)) + 0.5
    used = weights if weighted else np.ones_like(weights)
    every = []
    for drawn in itertools.product(range(5), repeat=5):
        chosen = list(drawn)
        sums = [values[i][chosen].sum() / used[i][chosen].sum() for i in range(2)]
        every.append(sums[1] - sums[0])
    exact = np.array(every)
    found = paired_bootstrap(*values, *(weights if weighted else (None, None)), samples=100_000)
    assert found.difference == pytest.approx(values[1].sum() / used[1].sum() - values[0].sum() / used[0].sum())
    assert found.ci95 == pytest.approx(np.quantile(exact, [0.025, 0.975]), abs=0.01)
    assert found.p == pytest.approx(2 * min((exact <= 0).mean(), (exact >= 0).mean()), abs=0.01)


def test_the_interval_is_scipys() -> None:
    generator = np.random.default_rng(2)
    a = generator.random(300)
    b = np.clip(a + generator.normal(0.03, 0.2, 300), 0, 1)
    theirs = scipy.stats.bootstrap(
        (a, b),
        lambda x, y, axis: y.mean(axis=axis) - x.mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=3,
    ).confidence_interval
    ours = paired_bootstrap(a, b, samples=20_000)
    assert ours.ci95 == pytest.approx((theirs.low, theirs.high), abs=1e-3)
    unpaired = np.hypot(a.std(), b.std()) / np.sqrt(300)
    assert (ours.ci95[1] - ours.ci95[0]) / 3.92 < 0.7 * unpaired  # pairing pays, and is done


def test_the_order_of_samples_does_not_matter_and_the_seed_does() -> None:
    generator = np.random.default_rng(4)
    a, b = generator.random((2, 40))
    order = generator.permutation(40)
    assert paired_bootstrap(a, b, samples=300) == paired_bootstrap(a[order], b[order], samples=300)
    assert paired_bootstrap(a, b, samples=300) != paired_bootstrap(a, b, samples=300, seed=1)
    swapped = paired_bootstrap(b, a, samples=300)
    assert swapped.difference == pytest.approx(-paired_bootstrap(a, b, samples=300).difference)


def test_other_samples_are_refused_unless_told(run: Callable[..., Path]) -> None:
    a, b = read_run(run("a", row("x", 4), row("y", 4))), read_run(run("b", row("y", 2), row("z", 4), row("w", 4)))
    with pytest.raises(ValueError, match=r"have 1 samples in common, but 1 and 2 of their own; --subset=common"):
        compare(a, b)
    compared = compare(a, b, subset="common", resamples=10)
    assert [pair.gain for pair in compared.pairs] == [-0.5]
    with pytest.raises(ValueError, match="no sample in common"):
        compare(a, read_run(run("c", row("q", 1))), subset="common")


def test_other_protocols_are_refused_unless_told(run: Callable[..., Path]) -> None:
    ignored = np.zeros((3, 10), dtype=bool)
    ignored[:, 4:] = True
    a = read_run(run("a", row("x", 8, ignore=encode_rle(ignored)), protocol="lisa"))
    b = read_run(run("b", row("x", 2, ignore=encode_rle(ignored))))
    with pytest.raises(ValueError, match=r"scored under lisa, .*b was scored under segzero|/b under segzero"):
        compare(a, b)
    for protocol, expected in [("lisa", (12 / 12.00001, 6 / 12.00001)), ("segzero", (0.8, 0.2)), ("lens", (0.5, 0.5))]:
        giou = compare(a, b, protocol=protocol, resamples=10).differences["all"]["giou"]
        assert (giou.a, giou.b) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "what"),
    [({"question": "other?"}, "question"), ({"level": "hard"}, "level"), ({"target": encode_rle(np.eye(3))}, "target")],
)
def test_samples_that_only_share_an_id_are_refused(change: Row, what: str, run: Callable[..., Path]) -> None:
    a, b = run("a", row("x", 4)), run("b", row("x", 4) | change)
    with pytest.raises(ValueError, match=f"sample 'x' has another {what} in .*b than in .*a"):
        compare(read_run(a), read_run(b), subset="common")


def test_a_lost_image_counts_as_the_evaluation_counts_it(run: Callable[..., Path]) -> None:
    lost = {"prediction": None, "target": None, "failure": "image_missing", "level": None, "question": "(lost)"}
    a, b = run("a", row("x", 4), row("y", 4)), run("b", row("x", 4), row("y", 0) | lost)
    of_all = compare(read_run(a), read_run(b), resamples=10).differences["all"]
    assert (of_all["giou"].a, of_all["giou"].b) == (1.0, 0.5)
    assert (of_all["ciou"].a, of_all["ciou"].b) == (1.0, 1.0)
    for metric in ("reasoning_tokens", "parse_rate"):
        assert of_all[metric].a == of_all[metric].b, "a sample that was not asked has no length"


def test_objects_are_averaged_and_drawn(run: Callable[..., Path]) -> None:
    cup, dog = {"object": "cup"}, {"object": "dog"}
    own = row("o", 4, object=None)
    a = read_run(run("a", row("x", 4, **cup), row("y", 2, "hard", 30, **cup), row("z", 4, **dog), own))
    b = read_run(run("b", row("x", 2, **cup), row("y", 0, "hard", **cup), row("z", 4, failure="no_json", **dog), own))
    document = comparison_document(compare(a, b, count="object", resamples=3000))
    assert document["count"] == "object"
    assert document["n"] == {"all": 3, "easy": 3, "hard": 1}
    assert document["expressions"] == {"all": 4, "easy": 3, "hard": 1}
    giou, ciou = (document["differences"]["all"][name] for name in ("giou", "ciou"))
    assert (giou["a"], giou["b"]) == pytest.approx(((0.75 + 1 + 1) / 3, (0.25 + 0 + 1) / 3))
    assert (ciou["a"], ciou["b"]) == pytest.approx(((9 + 12 + 12) / 36, (3 + 12 + 12) / 36))
    tokens, rate = (document["differences"]["all"][name] for name in ("reasoning_tokens", "parse_rate"))
    assert (tokens["a"], tokens["b"]) == pytest.approx((60 / 4, 40 / 4))  # of answers, whatever they ask for
    assert rate["b"] == 0.75
    every = [np.mean([(-0.5, -1.0, 0.0)[i] for i in drawn]) for drawn in itertools.product(range(3), repeat=3)]
    assert giou["ci95"] == pytest.approx(np.quantile(every * 1000, [0.025, 0.975]), abs=1e-12)
    assert (document["better"], document["worse"], document["same"]) == (0, 3, 1)  # expressions


def test_with_an_expression_an_object_both_counts_compare_alike(run: Callable[..., Path]) -> None:
    folders = []
    for name in "ab":
        columns = np.random.default_rng(ord(name)).integers(0, 10, 40).tolist()
        rows = (row(f"s{n}", column, tokens=column, object=f"o{n}") for n, column in enumerate(columns))
        folders.append(read_run(run(name, *rows)))
    expressions, objects = (compare(*folders, count=count, resamples=200) for count in get_args(Count))
    assert objects.differences == expressions.differences  # to the last bit


def test_other_counts_are_refused_unless_told(run: Callable[..., Path]) -> None:
    rows = [row("x", 4, object="cup"), row("y", 2, object="cup")]
    a, b = read_run(run("a", *rows, count="object")), read_run(run("b", *rows))  # b: of before there was a choice
    with pytest.raises(ValueError, match=r"a was counted per object, .*b per expression; with --count, both are"):
        compare(a, b)
    assert compare(a, a, resamples=10).count == "object"
    assert compare(a, b, count="expression", resamples=10).differences["all"]["giou"].a == 0.75
    strange = read_run(run("strange", *rows, count="objects"))
    with pytest.raises(ValueError, match="unknown count 'objects', choose from expression, object"):
        compare(strange, strange)
    old = read_run(run("old", row("x", 4), row("y", 2)))
    with pytest.raises(ValueError, match=r"sample 'x' has no 'object' in .*old, so objects cannot be counted"):
        compare(a, old, count="object")
    other = read_run(run("other", row("x", 4, object="cup"), row("y", 2, object="dog")))
    with pytest.raises(ValueError, match=r"sample 'y' has another object in .*other than in .*a"):
        compare(a, other, count="object")
    moved = row("y", 2, object="cup", target=encode_rle(np.ones((3, 10), dtype=bool)))
    two = read_run(run("two", rows[0], moved))
    with pytest.raises(ValueError, match="samples 'x' and 'y' ask for the object 'cup', but have different targets"):
        compare(two, two, count="object")


def test_predictions_without_truth_cannot_be_compared(run: Callable[..., Path]) -> None:
    folder = read_run(run("a", row("x", 4, target=None)))
    with pytest.raises(ValueError, match="sample 'x' has no target"):
        compare(folder, folder)


def test_a_damaged_mask_is_named(run: Callable[..., Path]) -> None:
    folder = read_run(run("a", row("x", 4, prediction={"size": [3, 10], "counts": "0"})))
    with pytest.raises(ValueError, match="sample 'x': prediction: RLE runs cover 0 pixels"):
        compare(folder, folder)


def test_folders_that_hold_no_finished_run(run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there is no samples\.jsonl \(ResultsWriter writes one\)"):
        read_run(tmp_path / "empty")
    (tmp_path / "empty/samples.part-0.jsonl").touch()
    with pytest.raises(ValueError, match="the run is not finished"):
        read_run(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"samples\.jsonl:2: id 'x' occurs already in row 1"):
        read_run(run("twice", row("x", 1), row("x", 1)))
    with pytest.raises(ValueError, match=r"samples\.jsonl:1: no 'question'"):
        read_run(run("other", {"id": 1}))
    with pytest.raises(ValueError, match="no rows"):
        read_run(run("none"))


def tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/compare_runs.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_tool_prints_and_writes(run: Callable[..., Path], tmp_path: Path) -> None:
    a, b = run("a", row("x", 4, tokens=8), row("y", 4)), run("b", row("x", 2, tokens=2), row("y", 4))
    done = tool(a, b, "--bootstrap_samples=100")
    assert done.returncode == 0, done.stderr
    assert "all         2  gIoU" in done.stdout
    assert "IoU: 0 better, 1 worse, 1 the same" in done.stdout
    assert "-0.500  1.000 → 0.500  8 → 2 tokens  x  where is x?" in done.stdout
    document = json.loads((b / "comparison_with_a.json").read_text(encoding="utf-8"))
    assert document["differences"]["all"]["giou"]["difference"] == -0.25
    assert document["protocol"] == "segzero"
    refused = tool(a, run("c", row("q", 1)), f"--output={tmp_path}/no.json")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
    recounted = tool(run("a", row("x", 4, object="o"), row("y", 4, object="o")), a, "--count=object")
    assert (recounted.returncode, "counted per object, 1 objects of 2 expressions" in recounted.stdout) == (0, True)
    assert not (tmp_path / "no.json").exists()
