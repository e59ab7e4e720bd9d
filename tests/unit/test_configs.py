"""Every config that ships is read by the program that it is for, and makes its objects without loading weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pixelthink.cli.layers import read_yaml, reward_of, with_bases
from pixelthink.cli.main import PixelThinkCLI, one_line
from pixelthink.cli.registry import load_components
from pixelthink.data.prompts import TokenTargets
from pixelthink.errors import UserError
from pixelthink.rewards.base import Reward
from pixelthink.types import TokenTarget
from tests.support import ROOT
from tools.score_rollouts import build_parser as reward_parser

RUNS = [*sorted(ROOT.glob("configs/*.yaml")), *sorted(ROOT.glob("configs/released/*.yaml"))]
ROLLOUTS = sorted(ROOT.glob("configs/rollout/*.yaml"))
EVALUATIONS = sorted(ROOT.glob("configs/eval/*.yaml"))
REWARDS = sorted(ROOT.glob("configs/reward/*.yaml"))
FILES = ["--input=in.jsonl", "--output=out.jsonl"]
BASELINE_NAMES = ("brief", "no_thinking", "fixed_budget", "tiny_brief", "tiny_fixed_budget")
BASELINES = [ROOT / f"configs/eval/{name}.yaml" for name in BASELINE_NAMES]
RECIPES_OF_ALL_KINDS = [*RUNS, *(path for path in EVALUATIONS if path not in BASELINES)]
KINDS = ("reward", "rollout", "segmenter", "data")
LAYERS = [*BASELINES, *(path for kind in KINDS for path in sorted(ROOT.glob(f"configs/{kind}/*.yaml")))]
HERE = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true"]  # whatever it is for


@pytest.fixture(autouse=True)
def _components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    load_components()


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_run_config_makes_its_objects(path: Path) -> None:
    asked = ["--data.predict.image=photo.jpg", "--data.predict.question=the dog"] if "predict" in path.stem else []
    cli = PixelThinkCLI(args=["--config", str(path), *HERE, *asked], run=False)
    assert cli.model.policy is None
    assert cli.datamodule.sources["predict" if asked else "train"] is not None
    assert cli.datamodule.coordinates == cli.model.answerer.backbone.convention


@pytest.mark.parametrize("path", ROLLOUTS, ids=lambda path: path.stem)
def test_rollout_config_changes_the_engine_alone(path: Path) -> None:
    plain, changed = (
        PixelThinkCLI(args=["--config", str(ROOT / "configs/tiny.yaml"), *more], run=False).config.as_dict()
        for more in ([], ["--config", str(path)])
    )
    assert plain["model"]["init_args"].pop("rollout") != changed["model"]["init_args"].pop("rollout")
    assert plain.pop("config") != changed.pop("config")
    assert changed == plain


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_evaluation_config_makes_its_objects(path: Path) -> None:
    below = ["--config", "configs/tiny.yaml"] if path in BASELINES else []
    cli = PixelThinkCLI(args=[*below, "--config", str(path), *HERE], run=False)
    assert path in BASELINES or cli.model.evaluator.config.model_billions > 0
    assert cli.datamodule.sources["test"] is not None
    assert cli.datamodule.coordinates == cli.model.answerer.backbone.convention


@pytest.mark.parametrize("path", REWARDS, ids=lambda path: path.stem)
def test_reward_config_makes_a_reward(path: Path) -> None:
    made = reward_parser().instantiate(reward_parser().parse_args([f"--config={reward_of(str(path))}", *FILES]))
    assert isinstance(made.reward, Reward)


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS, ids=lambda path: f"{path.parent.stem}-{path.stem}")
def test_a_layer_can_be_laid_over_every_recipe(layer: Path) -> None:
    """Its own part is as the layer says, the rest as the recipe says; only a reward needs a module that has one."""
    own = read_yaml(layer)
    for recipe in RECIPES_OF_ALL_KINDS:
        asked = ["--data.predict.image=a.jpg", "--data.predict.question=b"] if "predict" in recipe.stem else []
        plain = PixelThinkCLI(args=["--config", str(recipe), *asked, *HERE], run=False)
        if "reward" in own.get("model", {}) and not hasattr(plain.model, "reward"):
            with pytest.raises(Exception, match="reward") as refused:
                PixelThinkCLI(args=["--config", str(recipe), "--config", str(layer), *asked, *HERE], run=False)
            assert one_line(refused.value).startswith("--model.reward: no such option")
            continue
        laid = PixelThinkCLI(args=["--config", str(recipe), "--config", str(layer), *asked, *HERE], run=False)
        before, after = options_of(plain), options_of(laid)
        changed = {(part, name) for part in before for name in before[part] if before[part][name] != after[part][name]}
        named = {(part, name) for part, options in own.items() for name in options}
        assert changed <= named, f"{recipe.stem} × {layer.stem}"
        for part, name in named:
            wanted = own[part][name].get("class_path")
            assert wanted is None or after[part][name]["class_path"].endswith(f".{wanted}"), recipe.stem


def options_of(cli: PixelThinkCLI) -> dict[str, dict[str, Any]]:
    """What a run is made of, by part."""
    config = cli.config.as_dict()
    return {"model": config["model"]["init_args"], "data": config["data"], "trainer": config["trainer"]}


def test_a_config_builds_on_others(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("model: {a: 1}", encoding="utf-8")
    (tmp_path / "middle.yaml").write_text("base: below.yaml", encoding="utf-8")
    (tmp_path / "top.yaml").write_text("base: [middle.yaml, below.yaml]", encoding="utf-8")
    names = [Path(option).name for option in with_bases(["fit", f"--config={tmp_path}/top.yaml", "--config"])[1:]]
    assert names == [*("--config", "below.yaml", "--config", "middle.yaml", "--config", "below.yaml"),
                     *("--config", "top.yaml", "--config")]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: me.yaml", "me.yaml builds on itself"),
        ("base: other.yaml", "there is no file '.*other.yaml'"),
        ("a:\n\t- b", "me.yaml: line 2: .* \\(a tab: indent with spaces\\)"),
        ("- a", "me.yaml holds no options"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "me.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        with_bases(["--config", str(tmp_path / "me.yaml")])
    assert "\n" not in str(caught.value)


def test_configs_are_found() -> None:
    assert {"tiny", "reasonseg", "reasonseg_diff", "refcoco", "refcoco_plus"} <= {path.stem for path in EVALUATIONS}
    assert {"tiny", "tiny_sft", "pixelthink_7b", "l1_max"} <= {path.stem for path in RUNS}
    assert {"pixelthink", "token_budget", "accuracy_only", "visionreasoner"} <= {path.stem for path in REWARDS}


def made(name: str, *options: str) -> PixelThinkCLI:
    return PixelThinkCLI(args=["--config", f"configs/{name}.yaml", *HERE, *options], run=False)


def test_our_recipes_differ_from_the_released_ones_only_where_they_say_so() -> None:
    released = options_of(made("released/pixelthink_7b"))["model"]
    frozen = options_of(made("pixelthink_7b_frozen_tower"))["model"]
    assert {part for part in frozen if frozen[part] != released[part]} == {"policy"}
    tower = [model["policy"]["init_args"].pop("freeze_vision_tower") for model in (released, frozen)]
    assert (tower, released) == ([False, True], frozen)
    seg_zero = options_of(made("released/seg_zero"))["model"]
    for name, rule in (("seg_zero_l1_exact", "exact"), ("seg_zero_l1_max", "max")):
        cli = made(name)
        assert cli.datamodule.prompt.target == TokenTargets(rule=rule, fewest=80, most=200)
        ours = options_of(cli)["model"]
        assert {part for part in ours if ours[part] != seg_zero[part]} == {"reward"}


def test_the_asked_length_is_an_option_of_every_run_that_asks() -> None:
    asked = made("released/l1_exact", "--data.prompt.target.tokens=60").datamodule.prompt
    assert asked.token_target("any") == TokenTarget(60)
    asked = made("eval/tiny", "--data.prompt.target.tokens=12", "--data.prompt.target.rule=max").datamodule.prompt
    assert asked.token_target("any") == TokenTarget(12, at_most=True)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda path: f"{path.parent.stem}-{path.stem}")
def test_a_layer_alone_says_that_it_is_one(layer: Path) -> None:
    with pytest.raises(UserError, match=f"{layer.stem}.yaml is a layer, it names no model: put a run's config before"):
        PixelThinkCLI(args=["--config", str(layer), *HERE], run=False)


def test_the_small_card_trains_an_adapter_of_a_quantised_policy() -> None:
    module = made("qlora_24gb").model
    assert (module.answerer.backbone.quantization, module.answerer.backbone.adapter.rank) == ("nf4", 32)
    assert type(module.reference).__name__ == "AdapterOff"


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/data/*.yaml")), ids=lambda path: path.stem)
def test_data_groups_are_layered_over_a_recipe(path: Path) -> None:
    cli = made("released/pixelthink_7b", "--config", str(path))
    assert cli.datamodule.image_size == (840, 840)
    named = {name for name in ("train", "val", "test") if f"\n  {name}:" in path.read_text(encoding="utf-8")}
    assert named
    assert all(cli.datamodule.sources[name] is not None for name in named)


def test_data_groups_are_found() -> None:
    found = {path.stem for path in ROOT.glob("configs/data/*.yaml")}
    assert {"reasonseg", "refcoco", "mixture", "checked"} <= found
