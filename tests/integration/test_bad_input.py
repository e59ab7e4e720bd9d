"""Bad input ends a run with one clear line, and leaves nothing half-written.

Unknown components and missing checkpoints are tried in test_cli.py, together with the other errors of the command line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from pixelthink.cli.main import main
from tests.support import tiny_run

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def reasonseg_folder(tmp_path: Path) -> Path:
    """A ReasonSeg folder with one good sample."""
    from pixelthink.data.sources.shape_scenes import ShapeScenes

    folder = tmp_path / "reasonseg"
    folder.mkdir()
    ShapeScenes(size=1)[0].image.save(folder / "scene.jpg")
    annotation = {
        "text": ["the thing in the corner"],
        "is_sentence": True,
        "shapes": [{"label": "target", "points": [[5, 5], [40, 5], [40, 40], [5, 40]]}],
    }
    (folder / "scene.json").write_text(json.dumps(annotation), encoding="utf-8")
    return folder


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What follows `pixelthink: error: ` on the one line with which a command ends."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pixelthink: error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("pixelthink: error: ")


def reasonseg(folder: Path, **options: object) -> str:
    """The option that tests on a ReasonSeg folder."""
    arguments = json.dumps({"root": str(folder), **options})
    return f"--data.test={{class_path: ReasonSeg, init_args: {arguments}}}"


def part(name: str, **options: object) -> str:
    """One of tests/bad_parts.py as a YAML value."""
    return f"{{class_path: tests.bad_parts.{name}, init_args: {json.dumps(options)}}}"


def test_a_corrupt_image(reasonseg_folder, tmp_path, tiny_policy_path, capsys) -> None:
    image = reasonseg_folder / "scene.jpg"
    image.write_bytes(image.read_bytes()[:700])
    error = error_of(capsys, "test", *tiny_run(tmp_path, tiny_policy_path), reasonseg(reasonseg_folder))
    assert error.startswith(f"{image}: not a readable image: ")


def test_a_good_folder_is_tested(reasonseg_folder, tmp_path, tiny_policy_path) -> None:
    main(["test", *tiny_run(tmp_path, tiny_policy_path), reasonseg(reasonseg_folder)])


def test_a_difficulty_file_out_of_range(reasonseg_folder, tmp_path, tiny_policy_path, capsys) -> None:
    ratings = tmp_path / "ratings.json"
    ratings.write_text('[{"image_id": "scene", "difficulty_score_model": 11}]', encoding="utf-8")
    source = reasonseg(reasonseg_folder, difficulty_file=str(ratings))
    error = error_of(capsys, "test", *tiny_run(tmp_path, tiny_policy_path), source)
    assert error == (
        f"{ratings}: 1 outside 1 to 10: 'scene' (11); no difficulty for 1 of 1 ids: 'scene'; mend the file, or set "
        "difficulty.on_fault to drop or fill"
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mask_rows": 100}, "the mask has shape (100, 112), the image needs (112, 112)"),
        ({"difficulty": 0.5}, "difficulty must be a number from 1 to 10, got '0.5'"),
        ({"difficulty": 11.0}, "difficulty must be a number from 1 to 10, got '11.0'"),
    ],
)
def test_a_wrong_sample_is_named(wrong, message, tmp_path, tiny_policy_path, capsys) -> None:
    source = f"--data.test={part('BadSource', **wrong)}"
    error = error_of(capsys, "test", *tiny_run(tmp_path, tiny_policy_path), source)
    assert error == f"sample 'shapes-train-0-1': {message}"


def test_a_wrong_sample_stops_training_too(tmp_path, tiny_policy_path, capsys) -> None:
    source = f"--data.train={part('BadSource', difficulty=11.0)}"
    error = error_of(capsys, "fit", *tiny_run(tmp_path, tiny_policy_path), source, "--trainer.val_check_interval=1.0")
    assert error.startswith("sample 'shapes-train-0-1': difficulty")
    assert not (tmp_path / "policy").exists()


def test_a_hundred_kilobytes_of_braces(tmp_path, tiny_policy_path) -> None:
    writer = f"{{class_path: ResultsWriter, init_args: {{path: {tmp_path}/out}}}}"
    started = time.perf_counter()
    main(
        [
            *("test", *tiny_run(tmp_path, tiny_policy_path), f"--model.rollout={part('BraceEngine')}"),
            f"--trainer.callbacks=[SampleLogger, {writer}]",
        ]
    )
    assert time.perf_counter() - started < 60
    metrics = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert metrics["parse_rate"] == metrics["giou"] == 0.0
    assert [row["failure"] for row in rows] == ["no_json"] * 4
    assert all(len(row["response"]) == 100_000 for row in rows)


def test_braces_are_scored_in_training(tmp_path, tiny_policy_path) -> None:
    main(["fit", *tiny_run(tmp_path, tiny_policy_path), f"--model.rollout={part('BraceEngine')}"])
    assert (tmp_path / "policy/config.json").is_file()


def test_a_full_disk_keeps_the_last_good_checkpoint(small_disk, tmp_path, tiny_policy_path, capsys) -> None:
    checkpoints = small_disk / "checkpoints"
    saving = f"{{dirpath: {checkpoints}, save_last: true, every_n_train_steps: 1}}"
    callbacks = f"[{part('FillDisk', folder=str(small_disk), before_step=1)}, "
    callbacks += f"{{class_path: ModelCheckpoint, init_args: {saving}}}]"
    run = [*tiny_run(tmp_path, tiny_policy_path), f"--trainer.callbacks={callbacks}"]
    error = error_of(capsys, "fit", *run)
    assert error == f"checkpoint {checkpoints}/epoch=0-step=2.ckpt cannot be written: No space left on device"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["epoch=0-step=1.ckpt", "last.ckpt"]
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 1

    (small_disk / "filler").unlink()
    resume = [*tiny_run(tmp_path, tiny_policy_path), f"--ckpt_path={checkpoints}/last.ckpt"]
    main(["fit", *resume, f"--trainer.callbacks=[{{class_path: ModelCheckpoint, init_args: {saving}}}]"])
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 2


def test_a_full_disk_keeps_the_earlier_export(small_disk, tmp_path, tiny_policy_path, capsys) -> None:
    export = small_disk / "policy"
    shutil.copytree(tiny_policy_path, export)
    callbacks = f"[{part('FillDisk', folder=str(small_disk))}, "
    callbacks += f"{{class_path: HFExport, init_args: {{path: {export}}}}}]"
    error = error_of(capsys, "fit", *tiny_run(tmp_path, tiny_policy_path), f"--trainer.callbacks={callbacks}")
    assert error == f"policy cannot be exported to {export}: No space left on device"
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "policy"]
    AutoModelForImageTextToText.from_pretrained(export)


def test_a_full_disk_keeps_the_earlier_results(small_disk, tmp_path, tiny_policy_path, capsys) -> None:
    results = small_disk / "out"
    results.mkdir()
    (results / "metrics.json").write_text('{"giou": 0.5}\n', encoding="utf-8")
    callbacks = f"[{part('FillDisk', folder=str(small_disk))}, "
    callbacks += f"{{class_path: ResultsWriter, init_args: {{path: {results}}}}}]"
    error = error_of(capsys, "test", *tiny_run(tmp_path, tiny_policy_path), f"--trainer.callbacks={callbacks}")
    assert error == f"results cannot be written to {results}: No space left on device"
    kept = {
        "metrics.json",
        "samples.part-0.jsonl",
        "thumbnails",
    }  # the earlier result, and what the next run goes on from
    assert {path.name for path in results.iterdir()} == kept
    assert json.loads((results / "metrics.json").read_text(encoding="utf-8")) == {"giou": 0.5}


@pytest.mark.parametrize("content", [b"", b"hello", None], ids=["empty", "no checkpoint", "cut off"])
def test_a_damaged_checkpoint(content, tmp_path, tiny_policy_path, capsys) -> None:
    damaged = tmp_path / "damaged.ckpt"
    if content is None:
        torch.save({"state_dict": {"policy.weight": torch.zeros(100_000)}}, damaged)
        content = damaged.read_bytes()[:50_000]
    damaged.write_bytes(content)
    error = error_of(capsys, "test", *tiny_run(tmp_path, tiny_policy_path), f"--ckpt_path={damaged}")
    assert error.startswith(f"checkpoint {damaged} is damaged or no checkpoint")


def test_a_checkpoint_with_one_changed_byte_names_the_newest_whole_one(tmp_path, tiny_policy_path, capsys) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for name, age in (("last.ckpt", 0), ("epoch=0-step=4.ckpt", 10), ("epoch=0-step=2.ckpt", 20), ("cut.ckpt", 5)):
        torch.save({"state_dict": {"policy.weight": torch.rand(100_000)}}, folder / name)
        os.utime(folder / name, (time.time() - age,) * 2)
    changed = bytearray((folder / "last.ckpt").read_bytes())
    changed[200_000] ^= 1  # in the middle of the tensor: torch.load would not notice
    (folder / "last.ckpt").write_bytes(changed)
    assert torch.load(folder / "last.ckpt")
    (folder / "cut.ckpt").write_bytes((folder / "cut.ckpt").read_bytes()[:1000])
    os.utime(folder / "cut.ckpt", (time.time() - 5,) * 2)
    error = error_of(capsys, "test", *tiny_run(tmp_path, tiny_policy_path), f"--ckpt_path={folder}/last.ckpt")
    whole = folder / "epoch=0-step=4.ckpt"
    assert error.startswith(
        f"checkpoint {folder}/last.ckpt is damaged or no checkpoint: last/data/0 has another checksum"
    )
    assert error.rstrip().endswith(f"the newest whole one beside it is {whole}: --ckpt_path {whole}")


def test_a_last_checkpoint_that_is_missing_beside_others(tmp_path, tiny_policy_path, capsys) -> None:
    (tmp_path / "checkpoints").mkdir()
    other = tmp_path / "checkpoints/epoch=0-step=2.ckpt"
    torch.save({"state_dict": {}}, other)
    error = error_of(capsys, "fit", *tiny_run(tmp_path, tiny_policy_path), "--ckpt_path=last")
    assert f"no last checkpoint in {tmp_path}/checkpoints, but there is {other}: name it (--ckpt_path {other})" in error


def test_a_damaged_policy_folder(tmp_path, tiny_policy_path, capsys) -> None:
    folder = tmp_path / "damaged_policy"
    shutil.copytree(tiny_policy_path, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    error = error_of(capsys, "test", *tiny_run(tmp_path, folder))
    assert error.startswith(f"policy.path: cannot load '{folder}', the folder is incomplete or damaged (")
