"""The released recipes have the released constants: docs/released_constants.md against the resolved configurations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import yaml

from pixelthink.cli.main import PixelThinkCLI
from pixelthink.cli.registry import load_components
from tests.support import ROOT

TABLES = ROOT / "docs/released_constants.md"
ROW = re.compile(r"\| `([\w.]+)` \| `(.+?)` \| `([\w./-]+:\d+)` \| `(.+)` \|")
HERE = ["--trainer.accelerator=cpu", "--trainer.devices=1"]  # whatever it is for


def tables() -> dict[str, list[tuple[str, str, str]]]:
    """(option, value, source) of each recipe."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for line in TABLES.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            rows = found.setdefault(line[3:], [])
        elif line.startswith("| `"):
            parsed = ROW.fullmatch(line)
            assert parsed is not None, line
            option, value, source, _ = parsed.groups()
            rows.append((option, value, source))
    return found


def resolved(recipe: str, *options: str) -> dict[str, Any]:
    """A recipe's configuration with all its bases and defaults."""
    arguments = ["--config", f"configs/{recipe}.yaml", *HERE, *options]
    config: dict[str, Any] = PixelThinkCLI(arguments, run=False).config.as_dict()
    return config


def value_at(config: Any, option: str) -> Any:
    """The value of an option, named as on the command line; of a list, the member of a class."""
    for name in option.split("."):
        if isinstance(config, list):
            (config,) = (member for member in config if member["class_path"].endswith(f".{name}"))
            continue
        if name not in config:
            config = config["init_args"]
        config = config[name]
    return config


def differing(recipe: str, *options: str) -> Iterator[str]:
    """Each row that the configuration does not agree with."""
    config = resolved(recipe, *options)
    for option, text, source in tables()[recipe]:
        found, expected = value_at(config, option), yaml.safe_load(text)
        if option.endswith("class_path"):
            found = found.rpartition(".")[2]
        if (list(found) if isinstance(found, tuple) else found) != expected:
            yield f"{option} is {found!r}, released {expected!r} ({source})"


@pytest.fixture(autouse=True)
def _components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("PIXELTHINK_POLICY", "PIXELTHINK_DATA", "PIXELTHINK_SAM2"):
        monkeypatch.delenv(name, raising=False)
    load_components()


@pytest.mark.parametrize("recipe", sorted(tables()))
def test_a_released_recipe_has_the_released_constants(recipe: str) -> None:
    assert list(differing(recipe)) == []


def test_every_released_recipe_has_a_table() -> None:
    recipes = {f"released/{path.stem}" for path in ROOT.glob("configs/released/*.yaml")}
    assert recipes == {name for name in tables() if name.startswith("released/")}
    assert len(recipes) == 7
    for name, rows in tables().items():
        options = [option for option, _, _ in rows]
        assert len(options) == len(set(options)), name
    learned = {"model.grpo.kl_coef", "model.grpo.entropy_coef", "model.grpo.loss_aggregation", "model.optimizer.lr"}
    for name in recipes - {"released/qwen3vl_4b"}:  # its loss average is upstream verl's, in no file of PixelThink's
        assert learned <= {option for option, _, _ in tables()[name]}, name


def test_a_wrong_constant_would_be_found() -> None:
    (message,) = differing("released/pixelthink_7b", "--model.grpo.kl_coef=0.006")
    assert message.startswith("model.grpo.kl_coef is 0.006, released 0.005 (training_scripts/train_qwen25vl_7b_refcoco")


def test_l1_max_goes_on_from_l1_exact_whatever_model_others_start_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELTHINK_POLICY", "models/base")
    assert value_at(resolved("released/l1_exact"), "model.policy.path") == "models/base"
    config = resolved("released/l1_max")
    exported = value_at(resolved("released/l1_exact"), "trainer.callbacks.HFExport.path")
    assert value_at(config, "model.policy.path") == exported == "runs/l1_exact/policy"


def test_recipes_for_qwen3_convert_pixels_to_thousandths() -> None:
    """Not as released: its 840-pixel targets are in another unit than the model's answers (docs/reproduce.md)."""
    config = resolved("released/qwen3vl_4b")
    assert config["data"]["coordinates"] == "per_mille"
    assert all(side % 32 == 0 for side in config["data"]["image_size"])
    assert value_at(config, "model.reward.box_l1.threshold") == pytest.approx(10 * 1000 / 840, abs=0.05)
    assert value_at(config, "model.reward.points.threshold") == pytest.approx(100 * 1000 / 840, abs=0.05)
    assert value_at(config, "model.grpo.loss_aggregation") == "token-mean"


def test_the_released_first_step_can_be_had() -> None:
    """docs/deviations.md, 10: a learning rate of 0 in the first step, then constant."""
    page = (ROOT / "docs/deviations.md").read_text(encoding="utf-8")
    (options,) = re.findall(r"`(--model\.lr_scheduler=[^`]+)`", page)
    cli = PixelThinkCLI(["--config", "configs/released/pixelthink_7b.yaml", *HERE, *options.split()], run=False)
    weights = torch.nn.Linear(1, 1)
    made = cli.model.learner.configure(weights)
    rates = []
    for _ in range(3):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"].step()
    assert rates == [0.0, 1e-6, 1e-6]
