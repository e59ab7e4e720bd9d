"""Each kind of component is swapped by one entry of a YAML file, and the run uses the new one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pixelthink.cli.main import main
from tests import outside_parts
from tests.support import ROOT

MODEL = ("model", "init_args")
SWAPS = {
    "module": (("model", "class_path"), "OutsideModule"),
    "policy": ((*MODEL, "policy"), {"class_path": "OutsidePolicy", "init_args": {"folder": "POLICY"}}),
    "rollout engine": ((*MODEL, "rollout"), "OutsideEngine"),
    "reward": ((*MODEL, "reward"), "OutsideReward"),
    "reward term": ((*MODEL, "reward", "init_args", "iou"), "OutsideTerm"),
    "length score": ((*MODEL, "reward", "init_args", "length"), "OutsideLength"),
    "segmenter": ((*MODEL, "segmenter"), "OutsideSegmenter"),
    "sample source": (("data", "train"), "OutsideSource"),
    "prompt style": (("data", "prompt"), "OutsidePrompt"),
    "callback": (("trainer", "callbacks"), ["OutsideCallback"]),
}


@pytest.fixture(autouse=True)
def _forget_uses() -> Iterator[None]:
    outside_parts.USED.clear()
    yield
    outside_parts.USED.clear()


def small_config(policy: Path) -> dict[str, Any]:
    """configs/tiny.yaml, cut down to one step and one validation with a random policy."""
    config = yaml.safe_load((ROOT / "configs/tiny.yaml").read_text(encoding="utf-8"))
    model, data = config["model"]["init_args"], config["data"]
    model["policy"]["init_args"]["path"] = str(policy)
    model["sampling"] = {"group_size": 2, "max_new_tokens": 6}
    model["evaluation"]["sampling"]["max_new_tokens"] = 6
    data["train"]["init_args"]["size"] = data["val"]["init_args"]["size"] = data["batch_size"] = 2
    config["trainer"] = {
        "accelerator": "cpu",
        "max_steps": 1,
        "logger": False,
        "callbacks": None,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return config


def put(config: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    """Changes one entry of a nested dict."""
    for key in path[:-1]:
        config = config[key]
    config[path[-1]] = value


def fit(config: dict[str, Any], folder: Path) -> None:
    """Trains with a config written as YAML."""
    config["trainer"]["default_root_dir"] = str(folder)
    file = folder / "config_under_test.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    main(["fit", "--config", str(file)])


def name_of(entry: object) -> str:
    """Class name of a YAML entry, without its package."""
    if isinstance(entry, list):
        entry = entry[0]
    named = entry["class_path"] if isinstance(entry, dict) else entry
    assert isinstance(named, str)
    return named.rpartition(".")[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SWAPS)
def test_a_plugin_replaces_a_component(kind, tmp_path, tiny_policy_path, monkeypatch) -> None:
    monkeypatch.setenv("PIXELTHINK_PLUGINS", "tests.outside_parts")
    path, entry = SWAPS[kind]
    if kind == "policy":
        entry = {"class_path": "OutsidePolicy", "init_args": {"folder": str(tiny_policy_path)}}
    config = small_config(tiny_policy_path)
    put(config, path, entry)
    fit(config, tmp_path)
    assert {name_of(entry)} == outside_parts.USED


@pytest.mark.slow
def test_a_full_dotted_path_needs_no_plugin(tmp_path, tiny_policy_path, monkeypatch) -> None:
    monkeypatch.delenv("PIXELTHINK_PLUGINS", raising=False)
    config = small_config(tiny_policy_path)
    put(config, (*MODEL, "reward"), {"class_path": "tests.outside_parts.OutsideReward", "init_args": {"scale": 3.0}})
    fit(config, tmp_path)
    assert {"OutsideReward"} == outside_parts.USED


@pytest.mark.slow
def test_an_entry_point_brings_a_plugin(tmp_path, tiny_policy_path, monkeypatch) -> None:
    monkeypatch.delenv("PIXELTHINK_PLUGINS", raising=False)
    site = tmp_path / "site"
    (site / "pixelthink_extras-1.0.dist-info").mkdir(parents=True)
    (site / "pixelthink_extras-1.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: pixelthink-extras\nVersion: 1.0\n", encoding="utf-8"
    )
    (site / "pixelthink_extras-1.0.dist-info/entry_points.txt").write_text(
        "[pixelthink.plugins]\nextras = pixelthink_extras\n", encoding="utf-8"
    )
    (site / "pixelthink_extras.py").write_text(
        "from tests.outside_parts import OutsideSegmenter\n\n\nclass ExtraSegmenter(OutsideSegmenter):\n    pass\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(site)
    config = small_config(tiny_policy_path)
    put(config, (*MODEL, "segmenter"), "ExtraSegmenter")
    try:
        fit(config, tmp_path)
    finally:
        sys.modules.pop("pixelthink_extras", None)
    assert {"OutsideSegmenter"} == outside_parts.USED
