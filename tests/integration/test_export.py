"""From a Lightning checkpoint to Hugging Face format, in one command, and what it loads as."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from pixelthink.cli.main import main
from tests.support import ROOT, tiny_run

pytestmark = pytest.mark.slow

QLORA = ["--model.policy.adapter={rank: 4, alpha: 8}", "--model.policy.quantization=nf4"]
IDS = torch.arange(20, 60)[None]


def export(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """Runs the tool in this process."""
    monkeypatch.setattr(sys, "argv", ["export_policy.py", *options])
    runpy.run_path(str(ROOT / "tools/export_policy.py"), run_name="__main__")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_policy_path: Path) -> Path:
    """Folder of two steps of QLoRA whose policy is exported at the end."""
    folder = tmp_path_factory.mktemp("qlora")
    reward = "--model.reward=tests.outside_parts.OutsideReward"
    options = [*QLORA, reward, "--model.optimizer.lr=0.05", "--trainer.limit_val_batches=0"]
    main(["fit", *tiny_run(folder, tiny_policy_path), *options])
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def trained_logits(folder: Path, path: Path) -> torch.Tensor:
    """What the run's own policy makes of a text, its checkpoint loaded without this package's loader."""
    from pixelthink.policies.adapters import LoRA
    from pixelthink.policies.qwen_vl import Qwen25VL

    backbone = Qwen25VL(str(path), dtype="float32", adapter=LoRA(rank=4, alpha=8), quantization="nf4")
    model = backbone.load_model()
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("policy."): value for name, value in state.items()}, strict=False)
    return logits(model)


def test_a_merged_model(trained: Path, tiny_policy_path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    command = [f"--config={trained}/logs/config.yaml", f"--checkpoint={trained}/checkpoints/last.ckpt"]
    export(monkeypatch, *command, f"--output={tmp_path}/model")
    expected = trained_logits(trained, tiny_policy_path)
    for folder in (tmp_path / "model", trained / "policy"):  # the tool's, and HFExport's at the end of the run
        merged = AutoModelForImageTextToText.from_pretrained(folder)
        assert not getattr(merged, "is_quantized", False)
        assert merged.dtype == torch.float32
        torch.testing.assert_close(logits(merged), expected, rtol=0, atol=2e-5)
        AutoProcessor.from_pretrained(folder)
    start = AutoModelForImageTextToText.from_pretrained(tiny_policy_path)
    assert (logits(start) - expected).abs().max() > 1e-2


def test_an_adapter(trained: Path, tiny_policy_path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    command = [f"--config={trained}/logs/config.yaml", f"--checkpoint={trained}/checkpoints/last.ckpt"]
    export(monkeypatch, *command, f"--output={tmp_path}/adapter", "--what=adapter")
    from pixelthink.policies.quantization import quantization_config, use_one_kernel

    base = AutoModelForImageTextToText.from_pretrained(
        tiny_policy_path, quantization_config=quantization_config("nf4", torch.float32)
    )
    use_one_kernel(base)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(adapted), trained_logits(trained, tiny_policy_path), rtol=0, atol=2e-5)
    assert adapted.peft_config["default"].base_model_name_or_path == str(tiny_policy_path)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir() if "adapter" in path.name) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_bad_input_is_one_line(trained: Path, tiny_policy_path: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    config = f"--config={trained}/logs/config.yaml"
    wrong = tmp_path / "wrong.ckpt"
    torch.save({"state_dict": {"policy.other": torch.zeros(1)}}, wrong)
    for options, message in (
        ([config, "--checkpoint=nowhere.ckpt"], "--checkpoint: there is no file 'nowhere.ckpt'"),
        ([config, f"--checkpoint={wrong}"], "wrong.ckpt is another policy's than the config's"),
        (["--config=nowhere.yaml", f"--checkpoint={wrong}"], "--config: there is no file 'nowhere.yaml'"),
    ):
        with pytest.raises(SystemExit):
            export(monkeypatch, *options, f"--output={tmp_path}/out")
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "out").exists()
