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

from pixelthink.cli.main import main
from pixelthink.evaluation.finished_run import read_run
from pixelthink.evaluation.results import read_document
from pixelthink.geometry import decode_rle
from pixelthink.metrics.functional import efficiency_scores
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
    return untimed(read_document(folder / "out", "metrics.json")), [untimed(r) for r in read_run(folder / "out").rows]


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
    assert read_run(tmp_path / "out").rows[:4] == answered  # with their times: they were not answered again
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
    "9-vanishes": (NEVER_READ, "image_missing"),
    "a-truncated": (NEVER_READ, "image_unreadable"),
    "b-no-image": (NEVER_READ, "image_unreadable"),
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


def damage(scenes: Path, name: str, keep: int) -> str:
    """The callback that leaves so many bytes of an image once the first batch has been answered."""
    path = scenes / f"{name}.jpg"
    return f"{{class_path: tests.evaluation_parts.DamageFile, init_args: {{path: {path}, keep: {keep}}}}}, "


def rated(scenes: Path) -> Path:
    """A file of difficulties: all are hard."""
    path = scenes.parent / "difficulty.json"
    rows = [{"image_id": name, "difficulty_score_model": 7.0} for name in ANSWERS]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def faulty(folder: Path, scenes: Path, *options: str, workers: int = 0) -> list[str]:
    """Options of an evaluation in which everything goes wrong that can, in batches of 2."""
    script = folder / "script.json"
    script.write_text(json.dumps({name: text for name, (text, _) in ANSWERS.items()}), encoding="utf-8")
    remove = f"{{class_path: tests.evaluation_parts.RemoveFile, init_args: {{path: {scenes}/9-vanishes.jpg}}}}, "
    segmenter = "{class_path: tests.evaluation_parts.BoxFiller, init_args: {fails_at: 13, tiny_at: 14}}"
    source = f"{{class_path: ReasonSeg, init_args: {{root: {scenes}, difficulty_file: {rated(scenes)}}}}}"
    return [
        *command(
            folder, callbacks=remove + damage(scenes, "a-truncated", 700) + damage(scenes, "b-no-image", 0), size=1
        ),
        f"--model.rollout={{class_path: tests.evaluation_parts.ScriptedEngine, init_args: {{script: {script}}}}}",
        f"--model.segmenter={segmenter}",
        *(f"--data.test={source}", f"--data.val={source}"),
        "--model.evaluation.acceptance=pixelthink",  # the scripted answers have no reasoning
        *("--data.eval_batch_size=2", f"--data.num_workers={workers}", *options),
    ]


def test_every_fault_is_counted_and_no_sample_dropped(tmp_path: Path, scenes: Path, capsys) -> None:
    with pytest.warns(UserWarning, match="BoxFiller failed, which is counted as segmenter_error"):
        main(["test", *faulty(tmp_path, scenes)])
    metrics, rows = results(tmp_path)
    assert {row["id"]: row["failure"] for row in rows} == {name: cause for name, (_, cause) in ANSWERS.items()}
    assert metrics["n"] == metrics["n/hard"] == len(rows) == 12
    causes = ("no_json", "not_finite", "empty_box", "box_outside_image", "image_missing")
    assert metrics["failures"] == dict.fromkeys(causes, 1) | {"segmenter_error": 2, "image_unreadable": 2}
    assert metrics["flaws"] == {"points_off_box": 1, "box_beyond_image": 1}
    assert metrics["parse_rate"] == pytest.approx(6 / 9), "of those that were asked"
    answers = [text for text, cause in ANSWERS.values() if text != NEVER_READ]
    assert metrics["words"] == metrics["reasoning_tokens"] == pytest.approx(np.mean([len(t.split()) for t in answers]))
    cut = 102 * 30  # the box that reaches beyond the image, cut at its right edge
    assert metrics["giou"] == pytest.approx((1 + 1 + 1200 / cut) / 12)
    assert metrics["ciou"] == pytest.approx(3 * 1200 / (9 * 1200 + cut)), (
        "the truncated image says its size, not the two"
    )
    by_id = {row["id"]: row for row in rows}
    assert by_id["7-raises"]["failure_detail"] == "RuntimeError: no such thing"
    assert by_id["8-no-mask"]["failure_detail"] == "a mask must be bool (112, 112), got bool (1, 1)"
    assert by_id["9-vanishes"]["failure_detail"] == f"{scenes}/9-vanishes.jpg: there is no such image"
    assert by_id["9-vanishes"]["prediction"] is by_id["9-vanishes"]["target"] is by_id["9-vanishes"]["size"] is None
    assert by_id["b-no-image"]["prediction"] is by_id["b-no-image"]["target"] is None
    reason = f"{scenes}/a-truncated.jpg: not a readable image: image file is truncated"
    assert by_id["a-truncated"]["failure_detail"].startswith(reason)
    assert (by_id["a-truncated"]["intersection"], by_id["a-truncated"]["union"]) == (0, 1200)
    assert by_id["a-truncated"]["target"] == by_id["0-good"]["target"]
    assert {row["question"] for row in rows} == {"the box"}
    said = capsys.readouterr()
    assert "N = 12" in said.out
    assert said.err.count("counts as image_unreadable: ") == 2
    assert f"pixelthink: sample 'a-truncated' counts as image_unreadable: {reason}" in said.err
    assert f"pixelthink: sample '9-vanishes' counts as image_missing: {scenes}/9-vanishes.jpg: there is no" in said.err


def test_validate_counts_damaged_images_as_test_does(tmp_path: Path, scenes: Path) -> None:
    main(["validate", *faulty(tmp_path, scenes)])
    metrics, rows = results(tmp_path)
    assert len(rows) == metrics["n"] == 12
    assert [row["id"] for row in rows if row["failure"] == "image_unreadable"] == ["a-truncated", "b-no-image"]


def test_a_repaired_image_is_asked_when_the_run_goes_on(tmp_path: Path, scenes: Path) -> None:
    texts = json.dumps(GOOD)
    script = tmp_path / "answers.json"
    script.write_text(json.dumps(dict.fromkeys(ANSWERS, texts)), encoding="utf-8")
    engine = f"--model.rollout={{class_path: tests.evaluation_parts.ScriptedEngine, init_args: {{script: {script}}}}}"
    files = [scenes / f"{name}.jpg" for name in ANSWERS]
    sound = files[0].read_bytes()

    def run(folder: str, *callbacks: str) -> list[str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        writer = f"{{class_path: ResultsWriter, init_args: {{path: {tmp_path}/{folder}/out}}}}"
        return [*faulty(tmp_path / folder, scenes, engine), f"--trainer.callbacks=[{''.join(callbacks)}{writer}]"]

    main(["test", *run("whole")])
    (scenes / "1-no-json.jpg").write_bytes(sound[:700])
    (scenes / "2-nan.jpg").unlink()
    kill = "{class_path: tests.evaluation_parts.KillRun, init_args: {before_batch: 2}}, "
    assert as_program("test", *run("killed", kill)).returncode == -signal.SIGKILL
    lines = (tmp_path / "killed/out/samples.part-0.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    failures = [json.loads(line)["failure"] for line in lines]
    assert failures == [None, "image_unreadable", "image_missing", None]
    for name in ("1-no-json", "2-nan"):
        (scenes / f"{name}.jpg").write_bytes(sound)
    (scenes / "0-good.jpg").write_bytes(b"damaged since it was answered")
    main(["test", *run("killed")])
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


def test_a_mask_of_another_size_still_stops(tmp_path: Path, scenes: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["test", *faulty(tmp_path, scenes, "--data.test=tests.evaluation_parts.WrongMask")])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == "pixelthink: error: sample 'b': the mask has shape (5, 5), the image needs (8, 8)"


def test_a_folder_without_its_images_is_an_error(tmp_path: Path, scenes: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["test", *faulty(tmp_path, scenes, "--data.test=tests.evaluation_parts.NoImages")])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    reason = "/nowhere/0.jpg: there is no such image (not one of 2 images could be read: image_missing 2)"
    assert error == f"pixelthink: error: {reason}"


def test_a_judge_that_times_out_is_counted_and_asked_again(whole: Path, tmp_path: Path) -> None:
    late = {2: 1.5}

    def answer(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        time.sleep(late.get(number, 0.0))
        text = "no idea" if number == 4 else '{"score": 6}'
        return 200, {}, json.dumps({"choices": [{"message": {"content": text}}]}).encode()

    server = Server(answer)
    options = {"server": server.url, "model": "m", "cache": f"{tmp_path}/cache.jsonl", "retries": 0, "timeout": 0.5}
    judge = f"--model.judge={{class_path: OpenAIJudge, init_args: {json.dumps(options | {'concurrency': 1})}}}"
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
            *command(tmp_path, "--model.judge=ReferenceJudge", "--model.judge.reference=brief"),
        ]
    )
    metrics, rows = results(tmp_path)
    assert metrics["reference_rscore"] == pytest.approx(np.mean([row["rscore"] for row in rows]))
    assert 0 < metrics["reference_rscore"] < 10
    assert {"reference_rst", "reference_urss", "sat"} <= metrics.keys()
    assert not {"rscore", "rst", "urss"} & metrics.keys()
    assert "NOT comparable with the paper" in metrics["judge"]["note"]
