"""Memory plans: what was predicted is what is measured, and the tool says so in its own words."""

from __future__ import annotations

import re

import pytest

from benchmarks.memory_plan import BOUND, MIB, SHAPES, rows
from pixelthink.cli.registry import load_components
from pixelthink.planning.plan import GIB, Machine, plan_run
from pixelthink.planning.run import Run
from tests.support import ROOT
from tools.plan_memory import main


@pytest.fixture(autouse=True)
def _components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    load_components()


@pytest.mark.slow
def test_predictions_are_within_the_bound_of_resident_memory() -> None:
    found = list(rows(tuple(SHAPES)))
    assert len(found) == 8
    for row in found:
        assert row["measured"] > 150 * MIB, "too small for shares to mean anything"
        assert row["predicted"] == pytest.approx(row["measured"], rel=BOUND), row


@pytest.mark.slow
def test_the_tool_lists_what_is_held_and_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "configs/tiny.yaml", "--gpus=1", "--gpu_memory=8", "--reserve=1", "--options=false"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for purpose in ("weights", "gradients", "optimizer", "reference", "activations", "logits", "vision", "KV cache"):
        assert re.search(rf"^{purpose} +\d", printed, re.MULTILINE), purpose
    assert "8 prompts × 8 completions × 150 tokens, images 112 × 112" in printed
    assert "fits into 8 GiB" in printed


@pytest.mark.slow
def test_the_tool_names_what_would_make_it_fit(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--config", "configs/tiny.yaml", "--model.sampling.max_new_tokens=40"]
    assert main([*run, "--gpus=1", "--gpu_memory=0.3", "--reserve=0.1", "--response_tokens=40"]) == 1
    printed = capsys.readouterr().out
    assert "does NOT fit into 0.3 GiB" in printed
    savings = [
        float(line.split()[0]) for line in printed.splitlines() if line.strip().endswith(")") and "--model" in line
    ]
    assert savings == sorted(savings, reverse=True)
    assert "--model.grpo.micro_batch_size=1" in printed
    assert "Together these make it fit" in printed


@pytest.mark.slow
def test_what_a_config_says_is_honoured() -> None:
    def plan(*options: str, gpus: int = 1) -> dict[str, int]:
        arguments = ["--config", "configs/tiny.yaml", "--model.sampling.max_new_tokens=20", *options]
        found = plan_run(Run.of(arguments, gpus), Machine(gpus, 8, 1))
        return {"peak": found.peak, **found.phases["update"]}

    start = plan()
    parameters = start["weights"]
    assert start["gradients"] <= parameters
    assert start["optimizer"] == pytest.approx(2 * parameters, rel=0.01)
    assert start["reference"] == pytest.approx(parameters, rel=0.01)
    assert plan("--model.grpo.kl_coef=0")["reference"] == 0
    assert plan("--model.policy.dtype=bfloat16")["weights"] == pytest.approx(parameters / 2, rel=0.01)
    assert plan("--model.policy.gradient_checkpointing=true")["activations"] < start["activations"]
    assert plan("--model.grpo.micro_batch_size=8")["activations"] < start["activations"]
    assert plan("--data.image_size=[56, 56]")["activations"] < start["activations"]
    assert plan("--model.reference.offload=true")["reference"] == 0
    assert plan("--model.policy.adapter.rank=4", "--model.reference=AdapterOff")["reference"] == 0
    assert plan("--model.optimizer=torch.optim.SGD")["optimizer"] == 0
    assert plan("--trainer.strategy=fsdp2", gpus=4)["weights"] == pytest.approx(parameters / 4, rel=0.01)
    assert plan(gpus=4)["communication"] == pytest.approx(parameters, rel=0.01)


@pytest.mark.slow
def test_known_sums_of_the_seven_billion_recipe() -> None:
    arguments = [
        "--config",
        "configs/released/pixelthink_7b.yaml",
        "--trainer.strategy=auto",
        "--model.rollout=HFEngine",
    ]
    arguments += ["--model.policy.dtype=float32", "--model.sampling.max_new_tokens=8"]
    phase = plan_run(Run.of(arguments, 8), Machine(8, 80)).phases["update"]
    assert phase["weights"] / GIB == pytest.approx(8.292 * 4 * 1e9 / GIB, rel=0.001)
    assert phase["optimizer"] / GIB == pytest.approx(8.292e9 * 8 / GIB, rel=0.001)  # nothing is frozen
    assert phase["reference"] / GIB == pytest.approx(8.292e9 * 2 / GIB, rel=0.001)  # in bfloat16
    frozen = ["--config", "configs/pixelthink_7b_frozen_tower.yaml", *arguments[2:]]
    trained = 8.292e9 - 0.6766e9
    phase = plan_run(Run.of(frozen, 8), Machine(8, 80)).phases["update"]
    assert phase["optimizer"] / GIB == pytest.approx(trained * 8 / GIB, rel=0.001)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/tiny.yaml", "--gpus=0"], "gpus and gpu_memory must be positive"),
        (["--config", "configs/tiny.yaml", "--gpus=3"], "data.batch_size: 8 prompts do not divide among 3 GPUs"),
        (["--config", "configs/tiny_sft.yaml"], "memory plans are made of GRPOModule's runs, not of SFTModule's"),
        (["--config", "configs/tiny.yaml", "--model.policy.path=Other/Model-9B"], "is no folder with a config.json"),
        (["--config", "configs/tiny.yaml", "--model.grpo.clipp=1"], "clipp"),
    ],
)
def test_a_wrong_call_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    machine = [] if any(word.startswith("--gpus") for word in arguments) else ["--gpus=1"]
    assert main([*arguments, *machine, "--options=false"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()[-1]) < 400
