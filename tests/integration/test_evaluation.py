"""An evaluation from its command line: faults, kills, several processes, and what stands in its files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pixelthink.cli import main
from pixelthink.geometry import decode_rle
from pixelthink.metrics.functional import efficiency_scores
from pixelthink.results import read_document, read_samples
from tests.http_server import Server
from tests.support import ROOT

pytestmark = pytest.mark.slow

CONFIG = f"--config={ROOT / 'configs/eval/tiny.yaml'}"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def command(folder: Path, *options: str, size: int = 7, callbacks: str = "") -> list[str]:
    """Options of an evaluation of the shipped policy on a few scenes, in batches of 4, the last one smaller."""
    writer = f"{{class_path: ResultsWriter, init_args: {{path: {folder}/out}}}}"
    logs = f"{{save_dir: {folder}, name: logs, version: ''}}"
    return [
        *(CONFIG, f"--model.policy.path={ROOT / 'assets/tiny_policy'}", f"--data.test.size={size}"),
        *("--data.eval_batch_size=4", f"--trainer.callbacks=[{callbacks}{writer}]", *QUIET),
        f"--trainer.logger={{class_path: TensorBoardLogger, init_args: {logs}}}",
        *options,
    ]


def as_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pixelthink", *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )


def untimed(value: dict[str, Any]) -> dict[str, Any]:
    """Without what the clock says."""
    clocks = ("_ms", "samples_per_second", "timings")
    return {name: entry for name, entry in value.items() if not name.split("/")[0].endswith(clocks)}


def results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics and rows, without times."""
    return untimed(read_document(folder / "out", "metrics.json")), [untimed(r) for r in read_samples(folder / "out")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an evaluation that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    main(["test", *command(folder)])
    return folder


def test_files_say_what_was_found(whole: Path) -> None:
    metrics, rows = results(whole)
    assert [row["id"] for row in rows] == [f"shapes-test-0-{n}" for n in range(7)]
    assert [row["index"] for row in rows] == list(range(7))
    assert (metrics["protocol"], metrics["count"], metrics["n"]) == ("segzero", "expression", 7)
    assert metrics["giou"] == pytest.approx(np.mean([row["iou"] for row in rows]), abs=1e-12)
    intersections, unions = (sum(row[key] for row in rows) for key in ("intersection", "union"))
    assert metrics["ciou"] == intersections / unions
    low, high = metrics["giou_ci95"]
    assert low <= metrics["giou"] <= high
    assert sum(metrics[f"n/{level}"] for level in ("easy", "medium", "hard") if f"n/{level}" in metrics) == 7
    for row in rows:
        found, truth = decode_rle(row["prediction"]), decode_rle(row["target"])
        assert (row["intersection"], row["union"]) == ((found & truth).sum(), (found | truth).sum())
        assert row["response_tokens"] == len(row["token_ids"]) > row["reasoning_tokens"] > 0
        assert row["size"] == [112, 112]
        assert Image.open(whole / "out" / row["thumbnail"]).size == (112, 112)
    run = read_document(whole / "out", "run.json")
    assert (run["stage"], run["protocol"], run["seed"], run["checkpoint"]) == ("test", "segzero", 0, None)
    assert run["policy"] == str(ROOT / "assets/tiny_policy")
    assert run["versions"]["torch"]
    assert run["config"]["data"]["eval_batch_size"] == 4
    assert sorted(path.name for path in (whole / "out").iterdir()) == [
        "metrics.json",
        "report.html",
        "run.json",
        "samples.jsonl",
        "thumbnails",
    ]


def test_loggers_get_no_zeros_of_what_never_happened(whole: Path) -> None:
    events = EventAccumulator(str(whole / "logs"))
    events.Reload()
    names = set(events.Tags()["scalars"])
    assert {"test/giou", "test/giou_ci95_low", "test/giou/hard", "test/n", "test/sat", "test/total_ms"} <= names
    assert not [name for name in names if "failures" in name or "flaws" in name]


def test_samples_can_be_scored_again(whole: Path) -> None:
    tool = [sys.executable, str(ROOT / "tools/score_masks.py"), "--input", str(whole / "out/samples.jsonl")]
    printed = subprocess.run([*tool, "--protocol", "segzero"], capture_output=True, text=True, check=True).stdout
    metrics, _ = results(whole)
    scored = json.loads(printed)
    for name in ("n", "giou", "ciou", "giou_ci95", "ciou_ci95"):
        assert scored[name] == metrics[name]


def test_a_killed_run_goes_on_and_gives_the_same_numbers(whole: Path, tmp_path: Path, capsys) -> None:
    kill = "{class_path: tests.evaluation_parts.KillRun, init_args: {before_batch: 1}}, "
    killed = as_program("test", *command(tmp_path, callbacks=kill))
    assert killed.returncode == -signal.SIGKILL
    part = tmp_path / "out/samples.part-0.jsonl"
    answered = [json.loads(line) for line in part.read_text(encoding="utf-8").splitlines()][1:]
    assert len(answered) == 4
    with part.open("a", encoding="utf-8") as file:
        file.write('{"id": "shapes-test-0-4", "question": "the lar')  # a row that was being written
    main(["test", *command(tmp_path)])
    assert "4 samples were answered before this run was interrupted" in capsys.readouterr().out
    assert results(tmp_path) == results(whole)
    assert read_samples(tmp_path / "out")[:4] == answered  # with their times: they were not answered again
    assert not part.exists()


def test_a_batch_of_which_a_row_is_missing_is_answered_again(whole: Path, tmp_path: Path) -> None:
    kill = "{class_path: tests.evaluation_parts.KillRun, init_args: {before_batch: 1}}, "
    assert as_program("test", *command(tmp_path, callbacks=kill)).returncode == -signal.SIGKILL
    part = tmp_path / "out/samples.part-0.jsonl"
    lines = part.read_text(encoding="utf-8").splitlines(keepends=True)
    part.write_text("".join(lines[:3]), encoding="utf-8")
    main(["test", *command(tmp_path)])
    assert results(tmp_path) == results(whole)


SETTINGS = (
    *("stage", "protocol", "weights", "seed", "sampling", "engine", "segmenter", "data", "prompt"),
    *("image_size", "coordinates"),
)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model.evaluation.protocol=lisa", 'protocol was "segzero", is "lisa"'),
        ("--data.test.seed=1", "data was"),
        ("--model.segmenter.iterations=2", "segmenter was"),
        ("--model.evaluation.sampling.max_new_tokens=149", "sampling was"),
    ],
)
def test_rows_of_other_settings_are_refused(option: str, said: str, whole: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    settings = {name: value for name, value in read_document(whole / "out", "run.json").items() if name in SETTINGS}
    (out / "samples.part-3.jsonl").write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["test", *command(tmp_path, option)])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{out} holds an unfinished evaluation under other settings" in error
    assert said in error


def test_two_processes_give_the_numbers_of_one(whole: Path, tmp_path: Path) -> None:
    several = ("--trainer.devices=2", "--trainer.strategy=ddp")
    done = as_program("test", *command(tmp_path, *several))
    assert done.returncode == 0, done.stderr[-2000:]
    (metrics, rows), (metrics_of_one, rows_of_one) = results(tmp_path), results(whole)
    assert metrics == metrics_of_one  # to the last bit
    for row, row_of_one in zip(rows, rows_of_one, strict=True):
        assert row.pop("uncertainty") == pytest.approx(row_of_one.pop("uncertainty"), abs=1e-5)  # padded otherwise
    assert rows == rows_of_one
    assert read_document(tmp_path / "out", "run.json")["processes"] == 2
    assert done.stdout.count("protocol segzero, N = 7") == 1


GOOD = {"bbox": [10, 10, 49, 39], "points_1": [20, 20], "points_2": [30, 20]}
NEVER_READ = "the image is gone by then"
ANSWERS: dict[str, tuple[str, str | None]] = {
    "0-good": (json.dumps(GOOD), None),
    "1-no-json": ("I cannot see it", "no_json"),
    "2-nan": (json.dumps(GOOD | {"bbox": [float("nan"), 10, 49, 39]}), "not_finite"),
    "3-inverted": (json.dumps(GOOD | {"bbox": [49, 39, 10, 10]}), "empty_box"),
    "4-outside": (json.dumps(GOOD | {"bbox": [200, 10, 300, 39]}), "box_outside_image"),
    "5-points-off": (json.dumps(GOOD | {"points_1": [90, 90]}), None),
    "6-beyond": (json.dumps(GOOD | {"bbox": [10, 10, 149, 39]}), None),
    "7-raises": (json.dumps(GOOD | {"bbox": [13, 10, 49, 39]}), "segmenter_error"),
    "8-no-mask": (json.dumps(GOOD | {"bbox": [14, 10, 49, 39]}), "segmenter_error"),
    "9-vanishes": (NEVER_READ, "image_lost"),
}


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """A ReasonSeg folder of one image an answer; the target is 40 × 30 pixels."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    corners = [[10, 10], [49, 10], [49, 39], [10, 39]]
    annotation = {"text": ["the box"], "is_sentence": False, "shapes": [{"label": "target", "points": corners}]}
    for name in ANSWERS:
        Image.new("RGB", (112, 112), "white").save(folder / f"{name}.jpg")
        (folder / f"{name}.json").write_text(json.dumps(annotation), encoding="utf-8")
    return folder


def faulty(folder: Path, scenes: Path, *options: str, workers: int = 0) -> list[str]:
    """Options of an evaluation in which everything goes wrong that can, in batches of 5."""
    script = folder / "script.json"
    script.write_text(json.dumps({name: text for name, (text, _) in ANSWERS.items()}), encoding="utf-8")
    remove = f"{{class_path: tests.evaluation_parts.RemoveFile, init_args: {{path: {scenes}/9-vanishes.jpg}}}}, "
    segmenter = "{class_path: tests.evaluation_parts.BoxFiller, init_args: {fails_at: 13, tiny_at: 14}}"
    return [
        *command(folder, callbacks=remove, size=1),
        f"--model.rollout={{class_path: tests.evaluation_parts.ScriptedEngine, init_args: {{script: {script}}}}}",
        f"--model.segmenter={segmenter}",
        f"--data.test={{class_path: ReasonSeg, init_args: {{root: {scenes}}}}}",
        *("--data.eval_batch_size=2", f"--data.num_workers={workers}", *options),
    ]


def test_every_fault_is_counted_and_no_sample_dropped(tmp_path: Path, scenes: Path, capsys) -> None:
    with pytest.warns(UserWarning, match="BoxFiller failed, which is counted as segmenter_error"):
        main(["test", *faulty(tmp_path, scenes)])
    metrics, rows = results(tmp_path)
    assert {row["id"]: row["failure"] for row in rows} == {name: cause for name, (_, cause) in ANSWERS.items()}
    assert metrics["n"] == len(rows) == 10
    causes = ("no_json", "not_finite", "empty_box", "box_outside_image", "image_lost")
    assert metrics["failures"] == dict.fromkeys(causes, 1) | {"segmenter_error": 2}
    assert metrics["flaws"] == {"points_off_box": 1, "box_beyond_image": 1}
    assert metrics["parse_rate"] == pytest.approx(0.7)
    cut = 102 * 30  # the box that reaches beyond the image, cut at its right edge
    assert metrics["giou"] == pytest.approx((1 + 1 + 1200 / cut) / 10)
    assert metrics["ciou"] == pytest.approx(3 * 1200 / (8 * 1200 + cut))
    by_id = {row["id"]: row for row in rows}
    assert by_id["7-raises"]["failure_detail"] == "RuntimeError: no such thing"
    assert by_id["8-no-mask"]["failure_detail"] == "a mask must be bool (112, 112), got bool (1, 1)"
    assert by_id["9-vanishes"]["failure_detail"] == f"{scenes}/9-vanishes.jpg: there is no such image"
    assert by_id["9-vanishes"]["prediction"] is by_id["9-vanishes"]["target"] is by_id["9-vanishes"]["size"] is None
    assert "N = 10" in capsys.readouterr().out


def test_a_folder_without_its_images_is_an_error(tmp_path: Path, scenes: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["test", *faulty(tmp_path, scenes, "--data.test=tests.evaluation_parts.NoImages")])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == "pixelthink: error: not one of 2 images could be found: is their folder right?"


def test_a_judge_that_times_out_is_counted_and_asked_again(whole: Path, tmp_path: Path) -> None:
    late = {2: 1.5}

    def answer(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        time.sleep(late.get(number, 0.0))
        text = "no idea" if number == 4 else '{"score": 6}'
        return 200, {}, json.dumps({"choices": [{"message": {"content": text}}]}).encode()

    server = Server(answer)
    options = {"server": server.url, "model": "m", "cache": f"{tmp_path}/cache.jsonl", "retries": 0, "timeout": 0.5}
    judge = (
        f"--model.evaluation.judge={{class_path: OpenAIJudge, init_args: {json.dumps(options | {'concurrency': 1})}}}"
    )
    try:
        main(["test", *command(tmp_path, judge)])
        metrics, rows = results(tmp_path)
        main(["test", *command(tmp_path, judge)])
    finally:
        server.close()
    assert [row["judge_failure"] for row in rows] == [None, None, "timeout", None, "unusable_answer", None, None]
    assert metrics["judge_failures"] == {"timeout": 1, "unusable_answer": 1}
    assert (metrics["n"], metrics["rated"], metrics["rscore_rated"]) == (7, 5, 6.0)
    assert metrics["rscore"] == pytest.approx(6 * 5 / 7)
    expected = efficiency_scores(metrics["reasoning_tokens"], 30 / 7, metrics["giou"], 0.0014)
    assert (metrics["rst"], metrics["sat"], metrics["urss"]) == pytest.approx(expected, abs=1e-9)
    assert metrics["judge"]["name"] == "OpenAIJudge"
    assert metrics["giou"] == results(whole)[0]["giou"]
    again, _ = results(tmp_path)
    assert len(server.requests) == 7 + 2  # the two without a rating
    assert (again["rscore"], again["rated"], "judge_failures" in again) == (6.0, 7, False)


def test_the_reference_judge_says_that_it_is_no_rscore(tmp_path: Path) -> None:
    main(
        [
            "test",
            *command(tmp_path, "--model.evaluation.judge=ReferenceJudge", "--model.evaluation.judge.reference=brief"),
        ]
    )
    metrics, rows = results(tmp_path)
    assert metrics["reference_rscore"] == pytest.approx(np.mean([row["rscore"] for row in rows]))
    assert 0 < metrics["reference_rscore"] < 10
    assert {"reference_rst", "reference_urss", "sat"} <= metrics.keys()
    assert not {"rscore", "rst", "urss"} & metrics.keys()
    assert "NOT comparable with the paper" in metrics["judge"]["note"]
