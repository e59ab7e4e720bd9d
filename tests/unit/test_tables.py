"""The tables of the demo and of the benchmark, from metrics made up for the purpose."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.compare_rewards import COLUMNS, claim, compare, fingerprint, row
from tools.demo import exported_policy, table


def metrics(easy: float, hard: float, giou: float) -> dict[str, float]:
    found = dict.fromkeys(COLUMNS.values(), 0.5)
    tokens = {"reasoning_tokens/easy": easy, "reasoning_tokens/hard": hard, "reasoning_tokens": (easy + hard) / 2}
    return {**found, **tokens, "giou": giou}


def test_the_demo_prints_a_dash_for_what_nobody_measured() -> None:
    header, _, start = table({"start": {"reasoning_tokens": 41.26, "giou": 0.5}}).splitlines()
    assert header == "| policy | tokens easy | medium | hard | all | gIoU | gIoU hard | cIoU | parse rate |"
    assert start == "| start | - | - | - | 41.3 | 0.500 | - | - | - |"


def test_the_demo_finds_what_it_trains(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("trainer: {callbacks: [{class_path: HFExport, init_args: {path: somewhere/policy}}]}")
    assert exported_policy(str(config)) == "somewhere/policy"
    config.write_text("trainer: {max_epochs: 1}")
    with pytest.raises(SystemExit, match="no HFExport callback"):
        exported_policy(str(config))


def test_the_benchmark_says_how_far_the_aim_is() -> None:
    baseline, ours = [metrics(40, 40, 0.5)], [metrics(10, 20, 0.52), metrics(10, 40, 0.54)]
    assert compare(baseline, ours) == "50% fewer reasoning tokens, gIoU +0.030, on hard +0.000, hard/easy tokens 3.00"
    assert row("ours", ours).startswith("| ours | 10.0 ± 0.0 | 0.5 ± 0.0 | 30.0 ± 14.1 | 20.0 ± 7.1 | 0.530 ± 0.014 |")


def test_no_reasoning_at_all_is_no_error() -> None:
    assert "50% fewer" in compare([metrics(20, 20, 0.5)], [metrics(0, 20, 0.5)])


def test_a_finished_run_is_taken_only_for_what_it_was_made_of(tmp_path: Path) -> None:
    policy, config = tmp_path / "policy", tmp_path / "run.yaml"
    policy.mkdir()
    (policy / "model.safetensors").write_bytes(b"weights")
    config.write_text(f"model: {{init_args: {{policy: {{init_args: {{path: {policy}}}}}}}}}")
    mark = fingerprint(str(config), ["--a=1"])
    claim(tmp_path / "run", mark)
    claim(tmp_path / "run", fingerprint(str(config), ["--a=1"]))
    (policy / "model.safetensors").write_bytes(b"others")
    other_weights = fingerprint(str(config), ["--a=1"])
    config.write_text(config.read_text() + "\nseed_everything: 1")
    for other in (other_weights, fingerprint(str(config), ["--a=1"]), fingerprint(str(config), ["--a=2"])):
        assert other != mark
        with pytest.raises(RuntimeError, match="another config, policy or options"):
            claim(tmp_path / "run", other)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.json").write_text("{}")
    with pytest.raises(RuntimeError, match="another config"):
        claim(tmp_path / "old", mark)
