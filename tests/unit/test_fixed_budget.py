"""Thinking that is cut off: never longer than its budget, untouched where it is shorter, and always answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pixelthink.cli.main import PixelThinkCLI
from pixelthink.cli.registry import load_components
from pixelthink.data.collate import Collate
from pixelthink.data.prompts import ShortPrompt
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.parsing import parse_completion
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.rollouts.fixed_budget import FixedBudget
from pixelthink.rollouts.hf import HFEngine
from pixelthink.rollouts.vllm_requests import image_prompt
from pixelthink.segmenters.promptable import PromptableSegmenter
from pixelthink.types import PromptBatch, RolloutBatch
from tests.support import ROOT

GREEDY = SamplingConfig(group_size=1, temperature=0.0, max_new_tokens=150)


@pytest.fixture(scope="module")
def policy() -> Any:
    """The shipped policy, which thinks for 30 to 70 tokens."""
    backbone = Qwen25VL(str(ROOT / "assets/tiny_policy"), dtype="float32", local_files_only=True)
    backbone.setup()
    return backbone, backbone.load_model()


@pytest.fixture(scope="module")
def batch() -> PromptBatch:
    samples = ShapeScenes(split="test", size=8)
    return Collate(ShortPrompt(), (112, 112), "pixels")([samples[i] for i in range(8)])


@pytest.fixture(scope="module")
def free(policy: Any, batch: PromptBatch) -> RolloutBatch:
    engine = HFEngine()
    engine.setup(*policy)
    return engine.generate(batch, GREEDY, 0)


def answered(policy: Any, batch: PromptBatch, budget: int) -> RolloutBatch:
    engine = FixedBudget(budget)
    engine.setup(*policy)
    return engine.generate(batch, GREEDY, 0)


def test_a_generous_budget_changes_nothing(policy: Any, batch: PromptBatch, free: RolloutBatch) -> None:
    found = answered(policy, batch, 120)
    assert [c.text for c in found.completions] == [c.text for c in free.completions]
    assert [c.reasoning_tokens for c in found.completions] == [c.reasoning_tokens for c in free.completions]
    assert [c.finish_reason for c in found.completions] == ["stop"] * 8


@pytest.mark.parametrize("budget", [5, 20])
def test_thinking_ends_at_the_budget_and_is_answered(
    policy: Any, batch: PromptBatch, free: RolloutBatch, budget: int
) -> None:
    found = answered(policy, batch, budget)
    for completion, unbound in zip(found.completions, free.completions, strict=True):
        assert completion.reasoning_tokens == min(budget, unbound.reasoning_tokens)
        assert parse_completion(unbound.text).reasoning.startswith(parse_completion(completion.text).reasoning)
        cut = unbound.reasoning_tokens > budget
        assert completion.text.startswith(f"<think>{parse_completion(completion.text).reasoning}</think><answer>")
        assert (completion.text == unbound.text) == (not cut)
        assert completion.finish_reason == "stop", "it answers, be that well or not"
        assert len(completion.logprobs) == len(completion.token_ids) > budget
    assert found.prompts == batch.prompts, "not those that were begun"


def test_a_budget_of_nothing_is_no_thinking(policy: Any, batch: PromptBatch) -> None:
    for completion in answered(policy, batch, 0).completions:
        assert completion.text.startswith("<think></think><answer>")
        assert completion.reasoning_tokens == 0
        assert completion.finish_reason == "stop"


def test_some_end_before_the_budget_and_others_not(policy: Any, batch: PromptBatch, free: RolloutBatch) -> None:
    lengths = sorted(c.reasoning_tokens for c in free.completions)
    budget = lengths[len(lengths) // 2]
    assert lengths[0] < budget, "a batch of both kinds"
    found = answered(policy, batch, budget)
    for completion, unbound in zip(found.completions, free.completions, strict=True):
        if unbound.reasoning_tokens < budget:
            assert completion.text == unbound.text


def test_uncertainty_and_time_are_those_of_all_sampled_tokens(policy: Any, batch: PromptBatch) -> None:
    found = answered(policy, batch, 5)
    for completion in found.completions:
        assert completion.uncertainty is not None
        assert 0 <= completion.uncertainty <= 1
    spent = sum(
        (c.timings.preparation_ms or 0) + (c.timings.prefill_ms or 0) + (c.timings.decoding_ms or 0)
        for c in found.completions
    )
    assert 0.5 * 1000 * found.seconds < spent <= 1000 * found.seconds


def test_vllm_is_sent_the_beginning_too(policy: Any, batch: PromptBatch) -> None:
    from dataclasses import replace

    backbone = policy[0]
    begun = image_prompt(backbone, replace(batch.prompts[0], response_start="<think></think>"))
    assert begun.text == image_prompt(backbone, batch.prompts[0]).text + "<think></think>"


def test_weights_go_to_the_engine_beneath() -> None:
    engine = FixedBudget(4, engine=FixedBudget(8, engine=HFEngine()))
    assert isinstance(engine.sampler, HFEngine)
    assert engine.sampler.sampler is engine.sampler


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        FixedBudget(-1)
    with pytest.raises(ValueError, match="for evaluation"):
        FixedBudget(4).generate(PromptBatch(()), SamplingConfig(group_size=2), 0)
    with pytest.raises(ValueError, match="150 think_tokens leave nothing of max_new_tokens 150"):
        FixedBudget(150).generate(PromptBatch(()), GREEDY, 0)


@pytest.mark.parametrize("run", ["tiny", "eval/tiny"])
@pytest.mark.parametrize("baseline", ["tiny_brief", "no_thinking", "tiny_fixed_budget"])
def test_baselines_are_laid_over_a_run(baseline: str, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    load_components()
    configs = ["--config", f"configs/{run}.yaml", "--config", f"configs/eval/{baseline}.yaml"]
    cli = PixelThinkCLI(args=configs, run=False)
    if baseline == "tiny_brief":
        assert cli.datamodule.prompt.text("the cup").endswith(" be brief.")
    else:
        engine = cli.model.answerer._rollout
        assert isinstance(engine, FixedBudget)
        assert isinstance(engine.engine, HFEngine)
        assert engine.think_tokens == {"no_thinking": 0, "tiny_fixed_budget": 16}[baseline]


def test_baselines_for_real_models_have_words_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    load_components()
    for run in ("eval/reasonseg_diff", "released/pixelthink_7b"):
        layers = ["--config", "configs/eval/brief.yaml", "--config", "configs/eval/fixed_budget.yaml"]
        here = ["--trainer.accelerator=cpu", "--trainer.devices=1"]
        cli = PixelThinkCLI(args=["--config", f"configs/{run}.yaml", *layers, *here], run=False)
        assert cli.datamodule.prompt.text("x").endswith(
            "</answer> Be brief: keep the thinking process to one short sentence."
        )
        engine = cli.model.answerer._rollout
        assert isinstance(engine, FixedBudget)
        assert (engine.think_tokens, engine.closing) == (48, "</think><answer>")


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/segmenter/*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("run", ["tiny", "released/pixelthink_7b"])
def test_segmenters_are_laid_over_a_run(path: Path, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    load_components()
    here = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true"]
    cli = PixelThinkCLI(args=["--config", f"configs/{run}.yaml", "--config", str(path), *here], run=False)
    segmenter = cli.model.answerer.segmenter
    assert isinstance(segmenter, PromptableSegmenter)
    assert segmenter.autocast == "bfloat16"
