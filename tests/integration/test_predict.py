"""`predict` on anyone's images, as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelthink.cli.main import main
from pixelthink.data.sources.questions import ImageFolder
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.geometry import decode_rle
from pixelthink.metrics.functional import get_protocol, mask_counts, mask_ious
from tests.support import ROOT

pytestmark = pytest.mark.slow

QUESTION = "the rightmost shape"


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def predict(out: Path, *options: str) -> list[dict[str, Any]]:
    """Runs the shipped config; returns the rows it wrote."""
    quiet = ["--trainer.enable_progress_bar=false", f"--trainer.callbacks.path={out}"]
    main(["predict", "--config=configs/predict.yaml", *quiet, *options])
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_one_image_and_a_question(tmp_path: Path, capsys) -> None:
    options = ("--data.predict.image=assets/shapes.png", f"--data.predict.question={QUESTION}")
    [row] = predict(tmp_path / "out", *options)
    assert f"1 prediction(s) in {tmp_path / 'out'}\n" in capsys.readouterr().out
    truth = ShapeScenes(size=60, split="test")[50]
    mask = np.asarray(Image.open(tmp_path / "out/shapes.mask.png"))
    assert set(np.unique(mask)) == {0, 255}
    assert np.array_equal(mask == 255, decode_rle(row["mask"]))
    counts = mask_counts(mask == 255, truth.mask, None, get_protocol("segzero"))
    assert mask_ious([counts[0]], [counts[1]], get_protocol("segzero"))[0] > 0.9
    assert Image.open(tmp_path / "out/shapes.overlay.png").size == (112, 112)
    assert (row["id"], row["question"], row["image"]) == ("shapes", QUESTION, "assets/shapes.png")
    assert row["text"].startswith(f"<think>{row['reasoning']}</think>")
    [answer] = row["answer"]
    assert np.abs(np.array(answer["box"]) - truth.targets[0].box_xyxy).max() < 6
    assert row["failure"] is None
    assert all(value >= 0 for value in row["timings"].values())
    assert not (tmp_path / "out-2").exists()
    main(["predict", "--config=configs/predict.yaml", f"--trainer.callbacks.path={tmp_path}/out", *options])
    assert sorted(path.name for path in (tmp_path / "out-2").iterdir()) == [
        *("predictions.jsonl", "shapes.mask.png", "shapes.overlay.png")
    ]


def test_a_table_of_images_of_any_size(tmp_path: Path) -> None:
    scene = Image.open(ROOT / "assets/shapes.png")
    scene.resize((1200, 500)).save(tmp_path / "wide.jpg")
    turned = scene.resize((90, 260)).transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # shown turned to the right
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    asked = [f'{{"image": "{name}", "question": "{QUESTION}"}}' for name in ("wide.jpg", "turned.jpg", "dot.png")]
    (tmp_path / "asked.jsonl").write_text("\n".join(asked), encoding="utf-8")
    rows = predict(tmp_path / "out", "--data.predict=QuestionTable", f"--data.predict.path={tmp_path}/asked.jsonl")
    assert [row["id"] for row in rows] == ["wide-1", "turned-2", "dot-3"]
    for row, size in zip(rows, [(1200, 500), (90, 260), (1, 1)], strict=True):
        assert row["mask"]["size"] == [size[1], size[0]]
        for file in row["files"].values():
            assert Image.open(tmp_path / "out" / file).size == size
        for answer in row["answer"]:
            assert np.array(answer["box"]).max() <= max(size)


def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    asked = [
        f'{{"image": "{ROOT}/assets/shapes.png", "question": "the {word} shape"}}' for word in ("red", "low", "big")
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(asked), encoding="utf-8")
    options = [
        "--data.predict=QuestionTable",
        f"--data.predict.path={tmp_path}/asked.jsonl",
        "--data.eval_batch_size=2",
    ]
    alone = predict(tmp_path / "one", *options)
    command = [sys.executable, "-m", "pixelthink", "predict", "--config=configs/predict.yaml", *options]
    command += [f"--trainer.callbacks.path={tmp_path}/two", "--trainer.devices=2", "--trainer.strategy=ddp"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "two/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    together = [json.loads(line) for line in lines]
    assert [row | {"timings": None} for row in together] == [row | {"timings": None} for row in alone]
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


def test_answers_that_fail_are_written_too(tmp_path: Path, tiny_policy_path: Path, capsys) -> None:
    for name in ("a/b.png", "a_b.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10)).save(tmp_path / "in" / name)
    folder = ("--data.predict=ImageFolder", f"--data.predict.root={tmp_path}/in", "--data.predict.recursive=true")
    options = (*folder, "--data.predict.question=x", f"--model.policy.path={tiny_policy_path}")
    rows = predict(tmp_path / "out", *options, "--model.evaluation.sampling.max_new_tokens=5")
    assert [(row["id"], row["failure"], row["answer"]) for row in rows] == [
        *(("a/b", "no_json", []), ("a_b", "no_json", []))
    ]
    assert [row["files"]["mask"] for row in rows] == ["a_b.mask.png", "a_b-2.mask.png"]
    assert not np.asarray(Image.open(tmp_path / "out/a_b.mask.png")).any()
    assert f"2 prediction(s) in {tmp_path / 'out'}; without a usable answer: no_json 2" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["folder", "csv", "jsonl"])
def test_a_damaged_image_is_a_row_and_the_others_are_answered(source: str, tmp_path: Path, capsys) -> None:
    scene = (ROOT / "assets/shapes.png").read_bytes()
    for name, data in {"a.png": scene, "b.png": scene[:300], "c.png": b"no image", "d.png": scene}.items():
        (tmp_path / name).write_bytes(data)
    names = ("a", "b", "c", "d")
    table = tmp_path / f"asked.{source}"
    if source == "csv":
        table.write_text("id,image,question\n" + "".join(f"{n},{n}.png,{QUESTION}\n" for n in names), encoding="utf-8")
    elif source == "jsonl":
        rows = [{"id": n, "image": f"{n}.png", "question": QUESTION} for n in names]
        table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = ("--data.predict=ImageFolder", f"--data.predict.root={tmp_path}", f"--data.predict.question={QUESTION}")
    from_table = ("--data.predict=QuestionTable", f"--data.predict.path={table}")
    written = predict(tmp_path / "out", *(folder if source == "folder" else from_table), "--data.eval_batch_size=2")
    assert [(row["id"], row["failure"]) for row in written] == [
        *(("a", None), ("b", "image_unreadable"), ("c", "image_unreadable"), ("d", None))
    ]
    assert [row["question"] for row in written] == [QUESTION] * 4
    assert [len(row["files"]) for row in written] == [2, 0, 0, 2]
    assert written[1]["failure_detail"].startswith(f"{tmp_path}/b.png: not a readable image: ")
    assert written[1]["image"] == f"{tmp_path}/b.png"
    said = capsys.readouterr()
    assert f"4 prediction(s) in {tmp_path / 'out'}; without a usable answer: image_unreadable 2" in said.out
    assert f"pixelthink: sample 'c' counts as image_unreadable: {tmp_path}/c.png: not a readable image" in said.err


def test_where_no_image_can_be_read_one_line_says_so_and_nothing_is_left(tmp_path: Path, capsys) -> None:
    (tmp_path / "hurt.png").write_bytes((ROOT / "assets/shapes.png").read_bytes()[:300])
    with pytest.raises(SystemExit):
        predict(tmp_path / "out", f"--data.predict.image={tmp_path}/hurt.png", "--data.predict.question=x")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"pixelthink: error: {tmp_path}/hurt.png: not a readable image: ")
    assert error.endswith("(not one of 1 images could be read: image_unreadable 1)")
    assert not (tmp_path / "out").exists()


def test_an_image_that_vanishes_is_a_row_without_files(tmp_path: Path, monkeypatch) -> None:
    for name in ("a.png", "b.png"):
        shutil.copy(ROOT / "assets/shapes.png", tmp_path / name)
    setup = ImageFolder.setup

    def setup_and_lose(source: ImageFolder) -> None:
        setup(source)
        (tmp_path / "b.png").unlink(missing_ok=True)

    monkeypatch.setattr(ImageFolder, "setup", setup_and_lose)
    folder = ("--data.predict=ImageFolder", f"--data.predict.root={tmp_path}", f"--data.predict.question={QUESTION}")
    there, gone = predict(tmp_path / "out", *folder)
    assert (there["failure"], set(there["files"])) == (None, {"overlay", "mask"})
    assert (gone["id"], gone["failure"], gone["mask"], gone["files"]) == ("b", "image_missing", None, {})
    assert "b.png: there is no such image" in gone["failure_detail"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--data.predict: the following arguments are required: image, question"),
        (["--data.predict.image=no.jpg", "--data.predict.question=x"], "no.jpg: there is no such image"),
        (["--data.predict=QuestionTable", "--data.predict.path=no.csv"], "no.csv: there is no such file"),
    ],
)
def test_what_is_missing_is_named(options: list[str], message: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        predict(tmp_path / "out", *options)
    assert f"pixelthink: error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
