"""A run killed between two steps and resumed takes the same trajectory, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.slow


def fit(
    folder: Path, policy: str, *arguments: str, config: str = "configs/tiny.yaml"
) -> subprocess.CompletedProcess[str]:
    """Six steps of GRPO on ShapeScenes, a checkpoint after each."""
    checkpoint = (
        "{class_path: ModelCheckpoint, init_args: "
        f"{{dirpath: {folder}/checkpoints, save_last: true, every_n_train_steps: 1}}}}"
    )
    kill = next((a.split("=")[1] for a in arguments if a.startswith("kill=")), "-1")
    recorder = f"{{class_path: StepRecorder, init_args: {{path: {folder}/steps.jsonl, kill_before_step: {kill}}}}}"
    command = [
        *(sys.executable, "-m", "pixelthink", "fit", "--config", str(ROOT / config)),
        *(f"--model.policy.path={policy}", "--model.grpo.minibatches=2", "--model.sampling.max_new_tokens=12"),
        *("--data.batch_size=2", "--data.train.size=6", "--data.val=null", "--trainer.max_epochs=2"),
        *("--trainer.limit_train_batches=null", "--trainer.val_check_interval=null", "--trainer.logger=false"),
        *(f"--trainer.callbacks=[{checkpoint}, {recorder}]", "--trainer.enable_progress_bar=false"),
        *(a for a in arguments if not a.startswith("kill=")),
    ]
    environment = {**os.environ, "PIXELTHINK_PLUGINS": "tests.recorder", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def steps(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kill", [4, 8], ids=["within an epoch", "in the second epoch"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, tiny_policy_path: str, kill: int) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for folder in (straight, broken):
        folder.mkdir()
    assert fit(straight, tiny_policy_path).returncode == 0
    assert fit(broken, tiny_policy_path, f"kill={kill}").returncode == -signal.SIGKILL
    done = len(steps(broken))
    resumed = fit(broken, tiny_policy_path, "--ckpt_path=last")
    assert resumed.returncode == 0, resumed.stderr

    expected = steps(straight)
    assert len(expected) == 6
    assert 0 < done < 6
    assert steps(broken) == expected
    assert len({json.dumps(step["samples"]) for step in expected[:3]}) == 3
