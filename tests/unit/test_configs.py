"""Every config that ships is read by the program that it is for, and makes its objects without loading weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pixelthink.cli.layers import read_yaml, reward_of, with_bases
from pixelthink.cli.main import PixelThinkCLI, one_line
from pixelthink.cli.registry import load_components
from pixelthink.errors import UserError
from pixelthink.rewards.base import Reward
from tests.support import ROOT
from tools.score_rollouts import build_parser as reward_parser

RUNS = sorted(ROOT.glob("configs/*.yaml"))
ROLLOUTS = sorted(ROOT.glob("configs/rollout/*.yaml"))
EVALUATIONS = sorted(ROOT.glob("configs/eval/*.yaml"))
REWARDS = sorted(ROOT.glob("configs/reward/*.yaml"))
FILES = ["--input=in.jsonl", "--output=out.jsonl"]
BASELINES = [ROOT / f"configs/eval/{name}.yaml" for name in ("brief", "no_thinking", "fixed_budget")]
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
    assert {"tiny", "reasonseg"} <= {path.stem for path in EVALUATIONS}
    assert {"tiny", "tiny_sft"} <= {path.stem for path in RUNS}
    assert {"pixelthink", "token_budget", "accuracy_only", "visionreasoner"} <= {path.stem for path in REWARDS}


RELEASED = {
    "sampling.group_size": 8,
    "sampling.temperature": 1.0,
    "sampling.top_p": 1.0,
    "sampling.max_new_tokens": 1300,
    "grpo.clip": 0.2,
    "grpo.kl_coef": 5e-3,
    "grpo.kl_clamp": 10.0,
    "grpo.entropy_coef": 1e-3,
    "grpo.max_grad_norm": 1.0,
    "grpo.scale_by_std": True,
    "grpo.minibatches": 1,
    "grpo.epochs": 1,
    "reward.length.easy_threshold": 3.5,
    "reward.length.hard_threshold": 5.0,
    "reward.length.easy_budget": 96,
    "reward.length.hard_budget": 256,
    "reward.length.uncertainty_weight": 25,
    "reward.length.slope": 500,
    "reward.length.length_mode": "response_words",
    "answerer.backbone.freeze_vision_tower": True,
    "answerer.backbone.convention": "pixels",
    "evaluator.config.protocol": "segzero",
    "evaluator.config.sampling.temperature": 0.0,
}
"""The released recipe by attribute of the module (FACTS, section 1)."""
RECIPES = ("pixelthink_7b", "pixelthink_3b", "seg_zero", "l1_exact", "l1_max", "visionreasoner", "qwen3vl_4b")


def made(name: str, *options: str) -> PixelThinkCLI:
    here = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true"]
    return PixelThinkCLI(args=["--config", f"configs/{name}.yaml", *here, *options], run=False)


@pytest.mark.parametrize("name", ["pixelthink_7b", "pixelthink_3b"])
def test_the_released_recipe_has_the_released_constants(name: str) -> None:
    cli = made(name)
    for path, expected in RELEASED.items():
        value = cli.model
        for part in path.split("."):
            value = getattr(value, part)
        assert value == expected, path
    optimizer = cli.model.learner.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (1e-6, 1e-2)
    assert (cli.datamodule.batch_size, cli.datamodule.image_size) == (16, (840, 840))
    assert type(cli.datamodule.prompt).__name__ == "PixelThinkPrompt"
    assert (cli.config["trainer"]["max_epochs"], cli.model.answerer.backbone.path.split("-")[2]) == (
        1,
        name[-2:].upper(),
    )
    assert cli.datamodule.sources["train"].difficulty_file == "data/difficulty.json"
    terms = cli.model.reward.terms
    assert (terms["box_iou"].threshold, terms["box_l1"].threshold, terms["point_l1"].threshold) == (0.5, 10, 100)


def test_recipes_differ_from_the_released_one_only_where_they_say_so() -> None:
    found = {name: made(name) for name in RECIPES}
    assert {name: type(cli.model.reward).__name__ for name, cli in found.items() if name == "visionreasoner"} == {
        "visionreasoner": "VisionReasonerReward"
    }
    lengths = {"seg_zero": "NoLengthScore", "l1_exact": "L1Exact", "l1_max": "L1Max", "qwen3vl_4b": "ReleasedBudget"}
    assert {name: type(found[name].model.reward.length).__name__ for name in lengths} == lengths
    for name, cli in found.items():
        assert vars(cli.model.grpo) == vars(found["pixelthink_7b"].model.grpo), name
        assert vars(cli.model.sampling) == vars(found["pixelthink_7b"].model.sampling), name
        assert cli.datamodule.batch_size == 16, name
        assert (cli.datamodule.sources["train"].difficulty_file is None) == (
            name in ("seg_zero", "l1_exact", "l1_max", "visionreasoner")
        ), name
    assert found["visionreasoner"].datamodule.prompt.answer_style == "visionreasoner"


def test_qwen3_reads_targets_in_thousandths_and_sizes_that_it_keeps() -> None:
    cli = made("qwen3vl_4b")
    assert cli.datamodule.coordinates == cli.model.answerer.backbone.convention == "per_mille"
    assert all(side % 32 == 0 for side in cli.datamodule.image_size)
    assert cli.model.sampling.uncertainty_top_k >= 2
    scale = 1000 / 840
    terms = cli.model.reward.terms
    assert terms["box_l1"].threshold == pytest.approx(10 * scale, abs=0.05)
    assert terms["point_l1"].threshold == pytest.approx(100 * scale, abs=0.05)


def test_the_small_card_trains_an_adapter_of_a_quantised_policy() -> None:
    module = made("qlora_24gb").model
    assert (module.answerer.backbone.quantization, module.answerer.backbone.adapter.rank) == ("nf4", 32)
    assert type(module.reference).__name__ == "AdapterOff"


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/data/*.yaml")), ids=lambda path: path.stem)
def test_data_groups_are_layered_over_a_recipe(path: Path) -> None:
    cli = made("pixelthink_7b", "--config", str(path))
    assert cli.datamodule.image_size == (840, 840)
    named = {name for name in ("train", "val", "test") if f"\n  {name}:" in path.read_text(encoding="utf-8")}
    assert named
    assert all(cli.datamodule.sources[name] is not None for name in named)


def test_data_groups_are_found() -> None:
    found = {path.stem for path in ROOT.glob("configs/data/*.yaml")}
    assert {"reasonseg", "refcoco", "mixture", "checked"} <= found
