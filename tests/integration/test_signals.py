"""SIGTERM and Ctrl-C: the step is finished, a checkpoint or the rows are there, the status says it, the run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.slow
STEPS = 6


def fit_command(folder: Path, policy: Path, *arguments: str, devices: int = 1) -> list[str]:
    saver = f"{{class_path: ModelCheckpoint, init_args: {{dirpath: {folder}/checkpoints, save_last: true}}}}"
    recorder = f"{{class_path: StepRecorder, init_args: {{path: {folder}/steps.jsonl}}}}"
    return [
        *(sys.executable, "-m", "pixelthink", "fit", "--config", str(ROOT / "configs/tiny.yaml")),
        *(f"--model.policy.path={policy}", "--model.sampling.group_size=2", "--model.sampling.max_new_tokens=8"),
        *("--data.batch_size=2", f"--data.train.size={2 * STEPS}", "--data.val=null"),
        *("--trainer.val_check_interval=null", "--trainer.logger=false", "--trainer.enable_progress_bar=false"),
        *("--trainer.enable_model_summary=false", f"--trainer.devices={devices}"),
        *(f"--trainer.strategy={'ddp' if devices > 1 else 'auto'}", f"--trainer.callbacks=[{saver}, {recorder}]"),
        *arguments,
    ]


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PIXELTHINK_PLUGINS": "tests.recorder", "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def lines_of(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def signalled(command: list[str], file: Path, number: int, after: int) -> tuple[int, str]:
    """Runs a command, sends the signal once the file has so many lines; returns status and stderr."""
    process = start(command)
    deadline = time.time() + 200
    while len(lines_of(file)) < after and process.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=200)
    return process.returncode, errors


@pytest.mark.parametrize(
    ("number", "name", "status", "devices"), [(signal.SIGTERM, "SIGTERM", 143, 1), (signal.SIGINT, "SIGINT", 130, 1),
                                               (signal.SIGTERM, "SIGTERM", 143, 2)]
)  # fmt: skip
def test_a_training_ends_with_a_checkpoint_and_goes_on_as_if_nothing_had_been(
    tmp_path: Path, tiny_policy_path: Path, number: int, name: str, status: int, devices: int
) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for folder in (straight, stopped):
        folder.mkdir()
    whole = start(fit_command(straight, tiny_policy_path))
    assert whole.communicate(timeout=200) is not None
    assert whole.returncode == 0
    command = fit_command(stopped, tiny_policy_path, devices=devices)
    code, errors = signalled(command, stopped / "steps.jsonl", number, after=2)
    assert code == status, errors
    done = len(lines_of(stopped / "steps.jsonl"))
    last = stopped / "checkpoints/last.ckpt"
    assert 2 <= done < STEPS
    said = f"{last} is written; the same command with --ckpt_path last goes on"
    assert f"pixelthink: ended by {name} after step {done}: {said}" in errors.splitlines()
    assert "Traceback" not in errors
    assert "has ended before the others" not in errors
    again = start([*command, "--ckpt_path=last"])
    _, errors = again.communicate(timeout=200)
    assert again.returncode == 0, errors
    found, expected = lines_of(stopped / "steps.jsonl"), lines_of(straight / "steps.jsonl")
    assert len(found) == len(expected) == STEPS
    for step, wanted in zip(found, expected, strict=True):
        assert step["step"] == wanted["step"]
        for key in ("loss/loss", "train/reward", "train/response_tokens"):
            assert float.fromhex(step[key]) == pytest.approx(
                float.fromhex(wanted[key]), abs=0.0 if devices == 1 else 1e-5
            )


def test_an_evaluation_keeps_its_rows_and_says_that_older_numbers_are_old(
    tmp_path: Path, tiny_policy_path: Path
) -> None:
    results = tmp_path / "results"
    command = [
        *(sys.executable, "-m", "pixelthink", "test", "--config", "configs/eval/tiny.yaml", "--trainer.logger=false"),
        *(f"--model.policy.path={tiny_policy_path}", "--model.evaluation.sampling.max_new_tokens=40"),
        *("--data.test.size=96", "--data.eval_batch_size=2", "--trainer.enable_progress_bar=false"),
        f"--trainer.callbacks=[{{class_path: ResultsWriter, init_args: {{path: {results}, thumbnail_side: 0}}}}]",
    ]
    results.mkdir()
    (results / "metrics.json").write_text("{}", encoding="utf-8")
    process = start(command)
    deadline = time.time() + 200
    part = results / "samples.part-0.jsonl"
    while (not part.exists() or len(part.read_bytes().splitlines()) < 4) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 143, errors
    said = f"the rows so far are in {results} (metrics.json there is of an earlier run); the same command goes on"
    assert f"pixelthink: ended by SIGTERM: {said}" in errors.splitlines()
    again = start(command)
    output, errors = again.communicate(timeout=200)
    assert again.returncode == 0, errors
    assert "samples were answered before this run was interrupted" in output
    assert json.loads((results / "metrics.json").read_text(encoding="utf-8"))["n"] == 96
