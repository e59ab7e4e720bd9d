"""The policy that ships with the repository is what the README says it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pixelthink.cli import main
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


@pytest.mark.slow
def test_it_sees_answers_and_over_thinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    writer = ["--trainer.callbacks=ResultsWriter", f"--trainer.callbacks.path={tmp_path}"]
    options = ["--data.test.size=96", "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"]
    main(["test", "--config", "configs/tiny.yaml", *options, *writer])
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["giou"] >= 0.45
    assert metrics["parse_rate"] >= 0.95
    assert metrics["reasoning_tokens/easy"] > 30, "a base policy over-thinks easy questions too"
