"""Several updates a rollout: weights after them equal those of a plain implementation of PPO's clipped objective."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from pixelthink.data.datamodule import PromptData
from pixelthink.data.prompts import ShortPrompt
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.evaluation.config import EvaluationConfig
from pixelthink.grpo.loss import GRPOConfig
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.rollouts.hf import HFEngine
from pixelthink.training.grpo_module import GRPOModule
from pixelthink.types import PromptBatch, RolloutBatch
from tests.processes import TokenReward

LR, GROUP, MAX_NORM = 3.0, 4, 1.0


class RecordingEngine(HFEngine):
    """Keeps the rollouts that it samples."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts: list[RolloutBatch] = []

    def generate(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> RolloutBatch:
        self.rollouts.append(super().generate(batch, sampling, seed))
        return self.rollouts[-1]


class Curves(Callback):
    """Keeps what was logged of the step."""

    def on_train_batch_end(self, trainer: L.Trainer, *rest: object) -> None:
        self.logged = {name: float(value) for name, value in trainer.callback_metrics.items()}


def train(path: Path, config: GRPOConfig) -> tuple[nn.Module, RolloutBatch, dict[str, float]]:
    """One training step; the policy after it, what it was trained on, and what was logged."""
    L.seed_everything(0, verbose=False)
    engine, curves = RecordingEngine(), Curves()
    module = GRPOModule(
        Qwen25VL(str(path), dtype="float32", local_files_only=True),
        TokenReward(5),
        engine,
        sampling=SamplingConfig(group_size=GROUP, max_new_tokens=10),
        grpo=config,
        evaluation=EvaluationConfig(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=LR),
    )
    data = PromptData(
        train=ShapeScenes(size=8, seed=3), prompt=ShortPrompt(), image_size=(112, 112), batch_size=4, eval_batch_size=4
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu", callbacks=[curves], limit_train_batches=1, max_epochs=1, enable_checkpointing=False, **quiet
    )
    trainer.fit(module, data)
    assert module.policy is not None
    assert len(engine.rollouts) == 1
    return module.policy, engine.rollouts[0], curves.logged


def plain_updates(path: Path, rollout: RolloutBatch, config: GRPOConfig, *, clipped: bool = True) -> nn.Module:
    """The same step by the formulas: one padded row a completion, one backward pass an update."""
    backbone = Qwen25VL(str(path), dtype="float32", local_files_only=True, logprobs="padded")
    backbone.setup()
    policy, reference = backbone.load_model(), backbone.load_model()
    tokens = [torch.tensor(completion.token_ids) for completion in rollout.completions]
    encoded = backbone.encode(rollout.prompts)

    def score(model: nn.Module, rows: range) -> tuple[list[Tensor], list[Tensor]]:
        scores = backbone.score(model, encoded, [tokens[r] for r in rows], [r // GROUP for r in rows], True)
        assert scores.entropy is not None
        lengths = [len(tokens[r]) for r in rows]
        cut = [[row[:n] for row, n in zip(table, lengths, strict=True)] for table in (scores.logprobs, scores.entropy)]
        return cut[0], cut[1]

    rewards = torch.tensor([float(sum(c.text.encode()) % 5) for c in rollout.completions]).view(-1, GROUP)
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)).flatten()
    everything = range(len(tokens))
    with torch.no_grad():
        old, start = score(policy, everything)[0], score(reference, everything)[0]
    half = len(tokens) // 2
    for _ in range(config.epochs):
        for rows in (range(half), range(half, len(tokens))):
            new, entropy = score(policy, rows)
            total, count = torch.zeros(()), sum(len(tokens[r]) for r in rows)
            for r, logprobs, entropies in zip(rows, new, entropy, strict=True):
                ratio = (logprobs - old[r]).exp()
                bounded = ratio.clamp(1 - config.clip, 1 + config.clip) if clipped else ratio
                gain = torch.minimum(advantages[r] * ratio, advantages[r] * bounded)
                drift = start[r] - logprobs
                kl = drift.exp() - drift - 1
                total = total + (-gain + config.kl_coef * kl - config.entropy_coef * entropies).sum()
            policy.zero_grad()
            (total / count).backward()
            parameters = [parameter for parameter in policy.parameters() if parameter.grad is not None]
            norm = torch.sqrt(sum((p.grad.square().sum() for p in parameters), torch.zeros(())))  # type: ignore[union-attr]
            with torch.no_grad():
                for parameter in parameters:
                    parameter -= LR * parameter.grad * min(1.0, MAX_NORM / (float(norm) + 1e-6))
    return policy


def distance(first: nn.Module, second: nn.Module) -> float:
    """Largest |difference| of a weight."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize(("minibatches", "epochs"), [(2, 1), (2, 2)])
def test_several_updates_a_rollout_are_those_of_the_clipped_objective(
    minibatches: int, epochs: int, tiny_policy_path: Path
) -> None:
    config = GRPOConfig(
        minibatches=minibatches, epochs=epochs, kl_coef=0.05, entropy_coef=0.01, max_grad_norm=MAX_NORM, clip=0.02
    )
    found, rollout, logged = train(tiny_policy_path, config)
    expected = plain_updates(tiny_policy_path, rollout, config)
    unclipped = plain_updates(tiny_policy_path, rollout, config, clipped=False)
    moved = distance(found, Qwen25VL(str(tiny_policy_path), dtype="float32", local_files_only=True).load_model())
    assert logged["loss/clip_fraction"] > 0, "the test must reach the clip"
    assert distance(found, expected) < 1e-4 * moved
    assert distance(found, unclipped) > 1e-2 * moved
