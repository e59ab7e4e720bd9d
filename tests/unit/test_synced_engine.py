"""When an engine with weights of its own gets the policy's: before any sampling that would use older ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pixelthink.data.collate import Collate
from pixelthink.data.prompts import ShortPrompt
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.policies.base import PolicyBackbone
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.rollouts.base import EngineScore, RolloutEngine, SamplingConfig, SyncReport
from pixelthink.rollouts.parity import WeightSyncError
from pixelthink.rollouts.synced_engine import SyncConfig, SyncedEngine
from pixelthink.types import Completion, PromptBatch, RolloutBatch

SAMPLING = SamplingConfig(1, 4)


class OwnWeights(RolloutEngine):
    """Holds a copy of the policy's weights, and samples two tokens whose log-probabilities are those of the copy.

    Args:
        deaf: Weights that are handed over do not arrive.
    """

    def __init__(self, deaf: bool = False) -> None:
        self.deaf = deaf
        self.handed: list[int] = []

    def setup(self, backbone: PolicyBackbone, model: nn.Module) -> None:
        self.backbone = backbone
        self.copy = type(model)(model.config).eval()  # type: ignore[operator, arg-type]

    holds_weights = True
    version: int | None = None

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int, adapter: Path | None = None) -> SyncReport:
        received = dict(weights)
        if not self.deaf:
            self.copy.load_state_dict(received, strict=False)
        self.version = version
        self.handed.append(version)
        return SyncReport(0.0, 0, len(received))

    def generate(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> RolloutBatch:
        assert self.version is not None
        made = [Completion((5, 6), (0.0, 0.0), "", "stop", 0, None)] * (len(batch) * sampling.group_size)
        return RolloutBatch(batch.prompts, tuple(made), sampling.group_size, self.version)

    def score(self, rollout: RolloutBatch) -> list[EngineScore]:
        found = []
        for index, completion in enumerate(rollout.completions):
            prompt = rollout.prompt_of(index)
            seen = any(part["type"] == "image" for part in prompt.messages[-1]["content"])
            encoded = self.backbone.encode([prompt])[0] if seen else self.backbone.encode_text(prompt)
            with torch.no_grad():
                scores = self.backbone.score(self.copy, [encoded], [torch.tensor(completion.token_ids)], [0])
            found.append(EngineScore(tuple(encoded.token_ids.tolist()), tuple(scores.logprobs[0].tolist())))
        return found


class Case:
    """A synced engine at a version that the test sets."""

    def __init__(self, path: Path, engine: OwnWeights, config: SyncConfig) -> None:
        self.version = 0
        backbone = Qwen25VL(str(path), dtype="float32", local_files_only=True)
        backbone.setup()
        self.policy = backbone.load_model()
        self.engine = SyncedEngine(engine, backbone, self.policy, config, lambda: self.version)

    def step(self) -> None:
        """What an optimizer does."""
        self.version += 1
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter += 0.01


NO_CHECK = SyncConfig(parity_check=False)
BATCH = PromptBatch(())


def test_the_first_rollout_and_each_after_a_step_sample_from_the_current_weights(tiny_policy_path: Path) -> None:
    engine = OwnWeights()
    case = Case(tiny_policy_path, engine, NO_CHECK)
    for step in range(3):
        assert case.engine.generate(BATCH, SAMPLING, seed=step).policy_version == step
        assert case.engine.generate(BATCH, SAMPLING, seed=step).policy_version == step
        case.step()
    assert engine.handed == [0, 1, 2]


def test_training_may_lag_as_configured_and_evaluation_never(tiny_policy_path: Path) -> None:
    engine = OwnWeights()
    case = Case(tiny_policy_path, engine, SyncConfig(every_n_steps=3, parity_check=False))
    versions = []
    for step in range(5):
        versions.append(case.engine.generate(BATCH, SAMPLING, seed=step).policy_version)
        case.step()
    assert versions == [0, 0, 0, 3, 3]
    assert case.engine.generate(BATCH, SAMPLING, seed=0, evaluating=True).policy_version == 5
    assert engine.handed == [0, 3, 5]


def test_weights_that_anyone_writes_are_handed_over_before_an_evaluation(tiny_policy_path: Path) -> None:
    engine = OwnWeights()
    case = Case(tiny_policy_path, engine, NO_CHECK)
    case.engine.generate(BATCH, SAMPLING, seed=0, evaluating=True)
    with torch.no_grad():
        next(case.policy.parameters()).add_(1.0)
    case.engine.generate(BATCH, SAMPLING, seed=0, evaluating=True)
    assert engine.handed == [0, 0]
    received, sent = (next(model.parameters()) for model in (engine.copy, case.policy))
    assert torch.equal(received, sent)


@pytest.mark.parametrize("deaf", [False, True])
def test_weights_that_did_not_arrive_stop_the_run_before_sampling(deaf: bool, tiny_policy_path: Path) -> None:
    sample = ShapeScenes(size=1)[0]
    batch = Collate(ShortPrompt(), (112, 112), "pixels")([sample])
    case = Case(tiny_policy_path, OwnWeights(deaf), SyncConfig())
    if not deaf:
        handover = case.engine.hand_over(batch)
        assert handover is not None
        assert handover.parity is not None
        assert handover.parity.difference < 1e-5
        assert case.engine.hand_over(batch) is None
        return
    with pytest.raises(WeightSyncError, match=r"does not sample from the policy's weights of step 0.*Most likely"):
        case.engine.generate(batch, SAMPLING, seed=0)
