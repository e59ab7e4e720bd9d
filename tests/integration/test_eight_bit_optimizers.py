"""bitsandbytes' optimizers, named in YAML: states in 8 bits, weights that move, and resumed runs that go on as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pixelthink.cli.main import main
from tests.support import tiny_run

pytestmark = pytest.mark.slow

OPTIONS = ["--model.reward=tests.outside_parts.OutsideReward", "--trainer.limit_val_batches=0", "--data.train.size=6"]


def fit(folder: Path, policy: Path, optimizer: str, steps: int, *more: str) -> dict[str, Any]:
    """The last checkpoint of a run."""
    chosen = [f"--model.optimizer=bitsandbytes.optim.{optimizer}", "--model.optimizer.lr=0.001"]
    main(["fit", *tiny_run(folder, policy), *OPTIONS, *chosen, f"--trainer.max_steps={steps}", *more])
    return dict(torch.load(folder / "checkpoints/last.ckpt", weights_only=False))


def test_a_resumed_run_ends_as_an_uninterrupted_one(tiny_policy_path: Path, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", tiny_policy_path, "AdamW8bit", 3)
    half = fit(tmp_path / "half", tiny_policy_path, "AdamW8bit", 2)
    moved = {n for n, w in half["state_dict"].items() if not torch.equal(w, whole["state_dict"][n])}
    assert any(name.endswith("mlp.up_proj.weight") for name in moved)
    states = half["optimizer_states"][0]["state"]
    moments = [state["__bnb_optimizer_quant_state__"]["state1"] for state in states.values()]
    assert {moment.dtype for moment in moments if moment.numel() >= 4096} == {torch.uint8}
    assert all(state["step"] == 2 for state in states.values())
    last = f"--ckpt_path={tmp_path}/half/checkpoints/last.ckpt"
    resumed = fit(tmp_path / "half", tiny_policy_path, "AdamW8bit", 3, last)
    assert resumed["global_step"] == 3
    assert all(torch.equal(w, resumed["state_dict"][n]) for n, w in whole["state_dict"].items())


def test_paged_falls_back_on_a_cpu(tiny_policy_path: Path, tmp_path: Path, recwarn, caplog) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU pages")
    adapter = "--model.policy.adapter={rank: 4}"
    checkpoint = fit(tmp_path, tiny_policy_path, "PagedAdamW8bit", 2, adapter)
    said = [str(warning.message) for warning in recwarn] + caplog.messages
    assert any("paged" in text.lower() for text in said)
    assert any(weight.any() for name, weight in checkpoint["state_dict"].items() if ".lora_B." in name)
