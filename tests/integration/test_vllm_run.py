"""`configs/tiny_vllm.yaml` through the command line: it trains, and killed and resumed it samples the same."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.integration.test_resume import fit, steps
from tests.support import ROOT

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

CONFIG = "configs/tiny_vllm.yaml"
OPTIONS = ("--model.grpo.minibatches=1", "--trainer.max_epochs=1", "--model.sampling.group_size=4")


def test_a_killed_run_resumes_with_the_same_samples(tmp_path: Path) -> None:
    policy = str(ROOT / "assets/tiny_policy")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for folder in (straight, broken):
        folder.mkdir()
    whole = fit(straight, policy, *OPTIONS, config=CONFIG)
    assert whole.returncode == 0, whole.stderr
    assert fit(broken, policy, *OPTIONS, "kill=1", config=CONFIG).returncode == -signal.SIGKILL
    assert len(steps(broken)) == 1
    resumed = fit(broken, policy, *OPTIONS, "--ckpt_path=last", config=CONFIG)
    assert resumed.returncode == 0, resumed.stderr

    expected, found = steps(straight), steps(broken)
    assert len(expected) == len(found) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["samples"] == theirs["samples"]
        assert ours["train/response_tokens"] == theirs["train/response_tokens"]
        assert ours["train/reward"] == theirs["train/reward"]
        assert float.fromhex(ours["loss/loss"]) == pytest.approx(float.fromhex(theirs["loss/loss"]), abs=1e-6)
