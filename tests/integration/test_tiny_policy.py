"""The policy that ships with the repository is what the README says it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pixelthink.cli.main import main
from tests.support import ROOT

POLICY = ROOT / "assets" / "tiny_policy"


def test_it_is_a_small_real_qwen() -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    assert sum(file.stat().st_size for file in POLICY.iterdir()) <= 10 * 2**20
    model = AutoModelForImageTextToText.from_pretrained(POLICY, local_files_only=True)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    processor = AutoProcessor.from_pretrained(POLICY, local_files_only=True)
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert model.config.text_config.vocab_size == len(processor.tokenizer)


def measured(folder: Path, *overrides: str) -> dict[str, float]:
    """Metrics of the shipped policy on 96 held-out samples, answered greedily."""
    writer = ["--trainer.callbacks=ResultsWriter", f"--trainer.callbacks.path={folder}"]
    options = ["--data.test.size=96", "--trainer.logger=false", f"--trainer.default_root_dir={folder}"]
    main(["test", "--config", "configs/tiny.yaml", *options, *writer, *overrides])
    return dict(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))


@pytest.mark.slow
def test_it_over_thinks_and_needs_it_on_hard_queries_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    free = measured(tmp_path / "free")
    assert free["giou"] >= 0.45
    assert free["parse_rate"] >= 0.95
    assert free["reasoning_tokens/easy"] > 30, "a base policy over-thinks easy questions too"

    brief = measured(tmp_path / "brief", "--data.prompt=ShortPrompt", "--data.prompt.suffix= be brief.")
    assert brief["reasoning_tokens"] < 10
    assert brief["giou/hard"] <= free["giou/hard"] - 0.10
    assert brief["giou/easy"] >= free["giou/easy"] - 0.02
