"""Every config that ships is read by the program that it is for, and makes its objects without loading weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from pixelthink.cli import PixelThinkCLI
from pixelthink.registry import load_components
from pixelthink.rewards.base import Reward
from tests.support import ROOT

RUNS = sorted(ROOT.glob("configs/*.yaml"))
ROLLOUTS = sorted(ROOT.glob("configs/rollout/*.yaml"))
REWARDS = sorted(ROOT.glob("configs/reward/*.yaml"))


@pytest.fixture(autouse=True)
def _components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    load_components()


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_run_config_makes_its_objects(path: Path) -> None:
    here = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true"]  # whatever it is for
    asked = ["--data.predict.image=photo.jpg", "--data.predict.question=the dog"] if "predict" in path.stem else []
    cli = PixelThinkCLI(args=["--config", str(path), *here, *asked], run=False)
    assert cli.model.policy is None
    assert cli.datamodule.sources["predict" if asked else "train"] is not None
    assert cli.datamodule.coordinates == cli.model.backbone.convention


@pytest.mark.parametrize("path", ROLLOUTS, ids=lambda path: path.stem)
def test_rollout_config_changes_the_engine_alone(path: Path) -> None:
    plain, changed = (
        PixelThinkCLI(args=["--config", str(ROOT / "configs/tiny.yaml"), *more], run=False).config.as_dict()
        for more in ([], ["--config", str(path)])
    )
    assert plain["model"]["init_args"].pop("rollout") != changed["model"]["init_args"].pop("rollout")
    assert plain.pop("config") != changed.pop("config")
    assert changed == plain


@pytest.mark.parametrize("path", REWARDS, ids=lambda path: path.stem)
def test_reward_config_makes_a_reward(path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(Reward, "reward")
    made = parser.instantiate_classes(parser.parse_args([f"--config={path}"]))
    assert isinstance(made.reward, Reward)


def test_configs_are_found() -> None:
    assert {"tiny", "tiny_sft"} <= {path.stem for path in RUNS}
    assert {"pixelthink", "token_budget", "accuracy_only", "visionreasoner"} <= {path.stem for path in REWARDS}
