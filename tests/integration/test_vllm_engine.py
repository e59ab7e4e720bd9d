"""vLLM in this process: equal to the policy before, between and after everything that could part them, else caught.

One engine serves all tests of this file, since starting one takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor, nn

from pixelthink.data.collate import Collate
from pixelthink.data.prompts import ShortPrompt
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.rewards.composite import PixelThinkReward
from pixelthink.rollouts import vllm as vllm_engine
from pixelthink.rollouts.base import EngineScore, RolloutEngine, SamplingConfig, SyncReport
from pixelthink.rollouts.fixed_budget import FixedBudget
from pixelthink.rollouts.hf import HFEngine
from pixelthink.rollouts.parity import ParityCheck, WeightSyncError, policy_logprobs
from pixelthink.rollouts.synced_engine import SyncConfig, SyncedEngine
from pixelthink.rollouts.vllm import VLLMEngine
from pixelthink.rollouts.vllm_requests import ImagePrompt, image_prompt
from pixelthink.types import Prompt, PromptBatch, RolloutBatch
from tests.support import ROOT

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

PARITY = 1e-5
"""Largest difference of any sampled token's log-probability, float32."""


@pytest.fixture(scope="module")
def backbone() -> Qwen25VL:
    backbone = Qwen25VL(path=str(ROOT / "assets/tiny_policy"), dtype="float32", local_files_only=True)
    backbone.setup()
    return backbone


@pytest.fixture(scope="module")
def shared(backbone: Qwen25VL) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(max_model_len=1024, enforce_eager=True)
    engine.setup(backbone, backbone.load_model())
    yield engine
    engine.close()


@pytest.fixture
def policy(backbone: Qwen25VL) -> nn.Module:
    return backbone.load_model()


@pytest.fixture(scope="module")
def batch() -> PromptBatch:
    return prompts(4)


def prompts(count: int) -> PromptBatch:
    samples = ShapeScenes(split="val", size=count)
    return Collate(ShortPrompt(), (112, 112), "pixels")([samples[i] for i in range(count)])


def engine_of(
    kind: type[VLLMEngine], shared: VLLMEngine, backbone: Qwen25VL, policy: nn.Module, **state: Any
) -> VLLMEngine:
    """An engine of another class that uses the running vLLM, set up for a policy."""
    engine = kind.__new__(kind)
    engine.__dict__.update({**shared.__dict__, "version": None, "asleep": False, **state})
    engine.setup(backbone, policy)
    return engine


class Synced:
    """A `SyncedEngine` at a version that the test names, and what its last handover did."""

    def __init__(self, engine: RolloutEngine, backbone: Qwen25VL, policy: nn.Module, config: SyncConfig) -> None:
        self.version, self.syncs = 0, 0
        self.report: SyncReport | None = None
        self.parity: ParityCheck | None = None
        self.engine = SyncedEngine(engine, backbone, policy, config, lambda: self.version)

    def bring_up_to_date(self, version: int, batch: PromptBatch, *, evaluating: bool = False) -> None:
        self.version = version
        done = self.engine.hand_over(batch, evaluating=evaluating)
        if done is not None and done.sync is not None:
            self.report, self.syncs = done.sync, self.syncs + 1
        self.parity = done.parity if done is not None else None


def synced(engine: RolloutEngine, backbone: Qwen25VL, policy: nn.Module, **config: Any) -> Synced:
    return Synced(engine, backbone, policy, SyncConfig(**config))


def difference(
    engine: RolloutEngine, backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch, seed: int = 0
) -> float:
    """Largest |difference| of a sampled token's log-probability, in the rollout and under the policy in float64.

    A sharp policy's own rounding in float32 is as large as `PARITY`, so it would be no measure of vLLM's.
    """
    rollout = engine.generate(batch, SamplingConfig(2, 48), seed)
    encoded = backbone.encode(batch.prompts)
    with torch.no_grad():
        scores = backbone.score(
            deepcopy(policy).eval().double(),
            encoded,
            [torch.tensor(c.token_ids) for c in rollout.completions],
            [i // 2 for i in range(8)],
        )
    pairs = zip(scores.logprobs, rollout.completions, strict=True)
    return max(float((row[: len(c.logprobs)] - torch.tensor(c.logprobs)).abs().max()) for row, c in pairs)


@pytest.mark.parametrize(("budget", "closing"), [(0, "</think><answer>"), (5, "</think><answer>"), (16, " it is the")])
def test_a_fixed_budget_around_it_answers_as_around_transformers(
    shared: VLLMEngine, backbone: Qwen25VL, policy: nn.Module, budget: int, closing: str
) -> None:
    batch, greedy = prompts(8), SamplingConfig(1, 150, temperature=0.0)
    beneath = {"vllm": engine_of(VLLMEngine, shared, backbone, policy), "transformers": HFEngine()}
    found = {}
    for name, engine in beneath.items():
        steered = FixedBudget(budget, closing, engine)
        steered.setup(backbone, policy)
        synced(steered.sampler, backbone, policy).bring_up_to_date(0, batch, evaluating=True)
        with steered.serving():
            found[name] = steered.generate(batch, greedy, 0)
    ours, theirs = found["vllm"].completions, found["transformers"].completions
    assert [c.token_ids for c in ours] == [c.token_ids for c in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        assert (one.reasoning_tokens, one.answer_tokens) == (other.reasoning_tokens, other.answer_tokens)
        assert one.uncertainty == pytest.approx(other.uncertainty, abs=PARITY)
        assert one.logprobs == pytest.approx(other.logprobs, abs=5 * PARITY)
    assert any(c.reasoning_tokens >= budget for c in ours)
    assert all(c.text.startswith("<think></think><answer>") for c in ours) == (budget == 0)
    spent = sum(
        (c.timings.preparation_ms or 0) + (c.timings.prefill_ms or 0) + (c.timings.decoding_ms or 0) for c in ours
    )
    assert 0.5 * 1000 * found["vllm"].seconds < spent <= 1000 * found["vllm"].seconds


def train_step(backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch, optimizer: torch.optim.Optimizer) -> None:
    """A real optimizer step on all weights, vision tower included."""
    tokens = backbone.processor.tokenizer.encode("<think>i see black</think>", add_special_tokens=False)
    encoded = backbone.encode(batch.prompts)
    (-backbone.score(policy, encoded, [torch.tensor(tokens)] * 4, range(4)).logprobs.mean()).backward()
    optimizer.step()
    optimizer.zero_grad()


def adam(policy: nn.Module, lr: float = 2e-4) -> torch.optim.Optimizer:
    return torch.optim.AdamW(policy.parameters(), lr=lr)


def test_logprobs_equal_the_policys_before_and_after_each_step(
    shared: VLLMEngine, backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch
) -> None:
    engine = engine_of(VLLMEngine, shared, backbone, policy)
    sync = synced(engine, backbone, policy)
    optimizer = adam(policy)
    for step in range(4):
        sync.bring_up_to_date(step, batch)
        assert engine.version == step
        assert difference(engine, backbone, policy, batch, seed=step) < PARITY
        train_step(backbone, policy, batch, optimizer)
        assert difference(engine, backbone, policy, batch, seed=step) > 100 * PARITY, "a step must show"
    assert sync.syncs == 4
    assert sync.report is not None
    assert sync.report.bytes == sum(p.numel() * p.element_size() for p in policy.parameters())


@pytest.mark.parametrize("level", [1, 2])
def test_weights_after_waking_are_the_synced_ones(
    shared: VLLMEngine, backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch, level: int
) -> None:
    engine = engine_of(VLLMEngine, shared, backbone, policy, sleep_level=level)
    sync = synced(engine, backbone, policy)
    train_step(backbone, policy, batch, adam(policy))
    sync.bring_up_to_date(1, batch)
    engine.sleep()
    assert engine.asleep
    if level == 2:  # a CPU build keeps what a GPU would drop: drop it by hand
        assert engine.version is None
        overwrite(engine, (((name, torch.zeros_like(w)) for name, w in backbone.sync_weights(policy))))
    sync.bring_up_to_date(1, batch)
    assert not engine.asleep
    assert sync.syncs == level
    assert difference(engine, backbone, policy, batch) < PARITY


def overwrite(engine: VLLMEngine, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Changes vLLM's weights behind the engine's back."""
    engine.llm.collective_rpc("take_weights", kwargs={"weights_iterator": iter(weights)})
    engine._drop_caches()


def test_a_resumed_policy_is_the_one_that_samples(
    shared: VLLMEngine, backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch
) -> None:
    train_step(backbone, policy, batch, adam(policy))
    engine = engine_of(VLLMEngine, shared, backbone, policy)
    synced(engine, backbone, policy).bring_up_to_date(7, batch)
    expected = engine.generate(batch, SamplingConfig(2, 30), seed=5)

    resumed = backbone.load_model()
    engine = engine_of(VLLMEngine, shared, backbone, resumed)
    resumed.load_state_dict(policy.state_dict())
    sync = synced(engine, backbone, resumed)
    sync.bring_up_to_date(7, batch)
    found = engine.generate(batch, SamplingConfig(2, 30), seed=5)
    assert [c.token_ids for c in found.completions] == [c.token_ids for c in expected.completions]
    assert found.policy_version == 7
    assert difference(engine, backbone, resumed, batch) < PARITY


def test_weights_written_by_anyone_are_noticed(
    shared: VLLMEngine, backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch
) -> None:
    engine = engine_of(VLLMEngine, shared, backbone, policy)
    sync = synced(engine, backbone, policy)
    sync.bring_up_to_date(0, batch, evaluating=True)
    sync.bring_up_to_date(0, batch, evaluating=True)
    assert sync.syncs == 1
    policy.load_state_dict({name: 1.01 * value for name, value in policy.state_dict().items()})
    sync.bring_up_to_date(0, batch, evaluating=True)
    assert sync.syncs == 2
    assert difference(engine, backbone, policy, batch) < PARITY


def test_training_may_lag_as_configured_and_evaluation_never(
    shared: VLLMEngine, backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch
) -> None:
    engine = engine_of(VLLMEngine, shared, backbone, policy)
    sync = synced(engine, backbone, policy, every_n_steps=3)
    versions = []
    optimizer = adam(policy)
    for step in range(5):
        sync.bring_up_to_date(step, batch)
        versions.append(engine.generate(batch, SamplingConfig(1, 2), seed=0).policy_version)
        train_step(backbone, policy, batch, optimizer)
    assert versions == [0, 0, 0, 3, 3]
    sync.bring_up_to_date(5, batch, evaluating=True)
    assert engine.version == 5


class SkippedSync(VLLMEngine):
    """Says that it took weights, and did so only the first time."""

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> SyncReport:
        if version == 0:
            return super().sync(weights, version)
        self._drop_caches()
        self.version = version
        return SyncReport(0.0, 0, 0)


class LanguageModelOnly(VLLMEngine):
    """Takes no weights of the vision tower."""

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> SyncReport:
        if version:
            weights = ((name, weight) for name, weight in weights if "visual" not in name)
        return super().sync(weights, version)


class BaseAfterWake(VLLMEngine):
    """Wakes with the weights that the run started from."""

    base: Callable[[], Iterable[tuple[str, Tensor]]]

    def wake(self) -> None:
        super().wake()
        overwrite(self, self.base())


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (SkippedSync, "still serves the weights of step 0.*the sync did not reach it"),
        (LanguageModelOnly, "vision tower's weights were not synced"),
    ],
)
def test_sabotaged_syncs_are_caught_and_named(
    shared: VLLMEngine, backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch, kind: type[VLLMEngine], named: str
) -> None:
    engine = engine_of(kind, shared, backbone, policy)
    sync = synced(engine, backbone, policy)
    sync.bring_up_to_date(0, batch)
    train_step(backbone, policy, batch, adam(policy))
    with pytest.raises(WeightSyncError, match=named) as caught:
        sync.bring_up_to_date(1, batch)
    kept = sync.engine._parity._kept
    assert kept is not None
    found = engine.score(kept)[0].logprobs
    expected = policy_logprobs(backbone, policy, backbone.encode(kept.prompts)[0], kept)
    means = [sum(logprobs) / len(logprobs) for logprobs in (found, expected)]
    assert f"{means[0]:.6f} in the engine and {means[1]:.6f} in the policy" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_base_weights_after_a_sleep_are_caught_and_named(
    shared: VLLMEngine, backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch
) -> None:
    base = backbone.load_model()
    engine = engine_of(BaseAfterWake, shared, backbone, policy, sleep_level=1, base=lambda: backbone.sync_weights(base))
    sync = synced(engine, backbone, policy)
    sync.bring_up_to_date(0, batch)
    train_step(backbone, policy, batch, adam(policy))
    sync.bring_up_to_date(1, batch)
    engine.sleep()
    with pytest.raises(WeightSyncError, match=r"step 0 \(.*base weights\): .* back from before the sleep"):
        sync.bring_up_to_date(1, batch)


def test_expanded_image_tokens_are_caught_and_named(
    shared: VLLMEngine, backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def expanded(backbone: Any, prompt: Prompt) -> ImagePrompt:
        sent = image_prompt(backbone, prompt)
        return ImagePrompt(sent.text, tuple(backbone.encode([prompt])[0].token_ids.tolist()), sent.images)

    monkeypatch.setattr(vllm_engine, "image_prompt", expanded)
    sync = synced(engine_of(VLLMEngine, shared, backbone, policy), backbone, policy)
    with pytest.raises(WeightSyncError, match="expanded image tokens were sent"):
        sync.bring_up_to_date(0, batch)


def test_a_seed_gives_the_same_completions_and_another_gives_others(
    shared: VLLMEngine, backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch
) -> None:
    engine = engine_of(VLLMEngine, shared, backbone, policy)
    synced(engine, backbone, policy).bring_up_to_date(0, batch)
    hot = SamplingConfig(4, 30, temperature=1.5)
    first, again, other = (engine.generate(batch, hot, seed).completions for seed in (3, 3, 4))
    assert [c.token_ids for c in first] == [c.token_ids for c in again]
    assert [c.token_ids for c in first] != [c.token_ids for c in other]
    assert len({c.token_ids for c in first[:4]}) > 1, "members of a group differ"


def test_completions_keep_the_contract(
    shared: VLLMEngine, backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch
) -> None:
    engine = engine_of(VLLMEngine, shared, backbone, policy)
    synced(engine, backbone, policy).bring_up_to_date(0, batch)
    forbidden = set(backbone.forbidden_token_ids)
    seen = set()
    for completion in engine.generate(batch, SamplingConfig(8, 45, temperature=2.0), 0).completions:
        stops = [token in backbone.stop_token_ids for token in completion.token_ids]
        assert not any(stops[:-1])
        assert completion.finish_reason == ("stop" if stops[-1] else "length")
        assert stops[-1] or len(stops) == 45
        assert not forbidden & set(completion.token_ids)
        assert completion.text == backbone.processor.tokenizer.decode(completion.token_ids[: len(stops) - stops[-1]])
        assert completion.uncertainty is not None
        assert 0 < completion.uncertainty < 1
        seen.add(completion.finish_reason)
    assert seen == {"stop", "length"}


def test_greedy_answers_and_their_uncertainty_are_the_transformers_engines(
    shared: VLLMEngine, backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch
) -> None:
    engine, reference = engine_of(VLLMEngine, shared, backbone, policy), HFEngine()
    reference.setup(backbone, policy)
    synced(engine, backbone, policy).bring_up_to_date(0, batch)
    answers = []
    for penalty in (None, 1.05, 1.3):
        greedy = SamplingConfig(1, 60, temperature=0.0, repetition_penalty=penalty)
        pairs = zip(
            engine.generate(batch, greedy, 0).completions, reference.generate(batch, greedy, 0).completions, strict=True
        )
        for found, expected in pairs:
            assert found.token_ids == expected.token_ids
            assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)  # those of the model, without a penalty
            assert found.uncertainty == pytest.approx(expected.uncertainty, abs=1e-5)
            assert (found.reasoning_tokens, found.answer_tokens) == (expected.reasoning_tokens, expected.answer_tokens)
            answers.append(found.token_ids)
    assert len(set(answers)) > len(batch)  # a penalty changes answers


def test_rewards_are_the_transformers_engines_within_sampling_error(
    shared: VLLMEngine, backbone: Qwen25VL, policy: nn.Module
) -> None:
    """256 prompts, two completions each: paired mean difference within 3.5 standard errors, equal distributions."""
    many, sampling = prompts(256), SamplingConfig(2, 100)
    engine, reference = engine_of(VLLMEngine, shared, backbone, policy), HFEngine()
    reference.setup(backbone, policy)
    synced(engine, backbone, policy).bring_up_to_date(0, many)
    ours, theirs = (e.generate(many, sampling, seed=11) for e in (engine, reference))
    reward = PixelThinkReward()
    gaps = {
        "reward": reward(ours).total - reward(theirs).total,
        "tokens": lengths(ours) - lengths(theirs),
    }
    for name, gap in gaps.items():
        per_prompt = gap.view(256, 2).mean(dim=1)
        error = per_prompt.std() / 256**0.5
        assert error > 0
        assert per_prompt.mean().abs() < 3.5 * error, name
    assert ks_2samp(lengths(ours), lengths(theirs)).pvalue > 1e-3


def lengths(rollout: RolloutBatch) -> Tensor:
    return torch.tensor([float(len(c.token_ids)) for c in rollout.completions])


def test_what_vllm_would_cut_off_is_refused(
    shared: VLLMEngine, backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch
) -> None:
    engine = engine_of(VLLMEngine, shared, backbone, policy)
    with pytest.raises(ValueError, match=rf"sample '{batch.prompts[0].sample.id}'.*rollout\.max_model_len 1024"):
        engine.generate(batch, SamplingConfig(1, 1020, temperature=0.0), 0)


def test_scores_say_which_prompt_was_read(
    shared: VLLMEngine, backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch
) -> None:
    engine = engine_of(VLLMEngine, shared, backbone, policy)
    engine.sync(backbone.sync_weights(policy), 0)
    rollout = engine.generate(batch, SamplingConfig(1, 12), 0)
    scores: list[EngineScore] = engine.score(rollout)
    for score, encoded, completion in zip(scores, backbone.encode(batch.prompts), rollout.completions, strict=True):
        assert score.prompt_token_ids == tuple(encoded.token_ids.tolist())
        assert score.logprobs == pytest.approx(completion.logprobs, abs=PARITY)
