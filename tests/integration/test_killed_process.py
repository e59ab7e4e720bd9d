"""A run of two processes of which one is killed in the middle of a step ends with a line, and goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.slow

STEPS = 4


def fit(folder: Path, policy: Path, *arguments: str, kill: int = -1, devices: int = 2) -> subprocess.CompletedProcess:
    """Four steps through the command line, a checkpoint after each; the last process is killed within step `kill`."""
    checkpoint = (
        f"{{class_path: ModelCheckpoint, init_args: {{dirpath: {folder}, save_last: true, every_n_train_steps: 1}}}}"
    )
    recorder = f"{{class_path: StepRecorder, init_args: {{path: {folder}/steps.jsonl}}}}"
    killer = f"{{class_path: KillsLastProcess, init_args: {{step: {kill}}}}}"
    command = [
        *(sys.executable, "-m", "pixelthink", "fit", "--config", str(ROOT / "configs/tiny.yaml")),
        *(f"--model.policy.path={policy}", "--model.sampling.group_size=2", "--model.sampling.max_new_tokens=8"),
        *(
            "--data.batch_size=2",
            f"--data.train.size={2 * STEPS}",
            "--data.val=null",
            "--trainer.val_check_interval=null",
        ),
        *("--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        *(f"--trainer.devices={devices}", f"--trainer.strategy={'ddp' if devices > 1 else 'auto'}"),
        *(f"--trainer.callbacks=[{checkpoint}, {recorder}, {killer}]", *arguments),
    ]
    environment = {**os.environ, "PIXELTHINK_PLUGINS": "tests.recorder", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=400)


def steps(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_others_end_with_a_line_and_the_run_goes_on(tmp_path: Path, tiny_policy_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for folder in (straight, broken):
        folder.mkdir()
    alone = fit(straight, tiny_policy_path, devices=1)
    assert alone.returncode == 0, alone.stderr
    stopped = fit(broken, tiny_policy_path, kill=2)
    ended = time.time()
    assert stopped.returncode != 0
    killed = float((broken / "killed").read_text(encoding="utf-8"))
    assert ended - killed < 60
    lines = [line for line in stopped.stderr.splitlines() if line.startswith("pixelthink: error")]
    assert len(lines) == 1, stopped.stderr
    assert lines[0].startswith("pixelthink: error: process 1 of 2 has ended before the others")
    assert "Traceback" not in stopped.stderr
    assert len(steps(broken)) == 2

    resumed = fit(broken, tiny_policy_path, "--ckpt_path=last")
    assert resumed.returncode == 0, resumed.stderr
    found, expected = steps(broken), steps(straight)
    assert len(found) == len(expected) == STEPS
    for step, wanted in zip(found, expected, strict=True):
        assert step["step"] == wanted["step"]
        for name in ("loss/loss", "train/response_tokens", "train/reward"):
            assert float.fromhex(step[name]) == pytest.approx(float.fromhex(wanted[name]), abs=1e-5)
