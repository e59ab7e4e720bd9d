"""GRPO for reasoning segmentation, on one screen: see `GRPOModule.training_step`.

What it computes otherwise than the released PixelThink code; docs/deviations.md says why, and lists the smaller ones.
In brackets is the option that restores the released behaviour, or "-" where there is none.

1. The loss is a mean over tokens, not over responses of token means [grpo.loss_aggregation=seq-mean-token-mean].
2. With one update a rollout the old log-probabilities are the current ones, detached [grpo.minibatches from 2 on].
3. A group of equal rewards, or of one, has advantages of exactly 0 [-].
4. Log-probabilities and entropy are at temperature 1, summed in float32 [-; the released recipes sample at 1].
5. The first step's learning rate is not 0 [model.lr_scheduler, a warm-up of 1 step].
6. The reference has the policy's precision [reference.dtype=bfloat16]; nothing leaves the GPUs between phases [-].
7. A missing difficulty or uncertainty stops the run and names the sample; released, they become 3.0 and 0 [-].
8. Image placeholders cannot be sampled, prompts are not cut, steps that are not finite are left out [-].
9. Sampling and order of the samples are functions of seed, step and epoch alone [-; the first epoch's order agrees].
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from jsonargparse import lazy_instance
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.optim import AdamW

from pixelthink.answering.answerer import Answerer
from pixelthink.callbacks.lifecycle import Lifecycle
from pixelthink.components import resolved
from pixelthink.evaluation.config import EvaluationConfig
from pixelthink.evaluation.evaluator import Evaluator
from pixelthink.evaluation.interface import SegmentationModule
from pixelthink.grpo.advantages import group_advantages
from pixelthink.grpo.experience import Experience, minibatches
from pixelthink.grpo.loss import GRPOConfig
from pixelthink.judges.base import Judge
from pixelthink.parallel.collectives import all_gather_object
from pixelthink.parallel.processes import Processes
from pixelthink.parallel.strategy import shard_for
from pixelthink.policies.base import EncodedPrompt, PolicyBackbone
from pixelthink.policies.reference import FrozenCopy, Reference
from pixelthink.rewards.base import Reward
from pixelthink.rewards.composite import PixelThinkReward
from pixelthink.rollouts.base import RolloutEngine, SamplingConfig
from pixelthink.rollouts.hf import HFEngine
from pixelthink.segmenters.base import Segmenter
from pixelthink.segmenters.grabcut import GrabCut
from pixelthink.timing import Stopwatch
from pixelthink.training.checks import check_training
from pixelthink.training.learner import Learner, check_checkpoint, checkpointed
from pixelthink.training.optim import OptimizerFactory, SchedulerFactory
from pixelthink.training.scorer import Gradients, Scorer
from pixelthink.training.step_curves import step_curves
from pixelthink.types import Prediction, PromptBatch, RolloutBatch


class GRPOModule(SegmentationModule):
    """Trains a policy by group-relative policy optimisation against a reward.

    Args:
        policy: Model family and weights to start from.
        reward: Scores completions.
        rollout: Engine that samples completions.
        segmenter: Turns answers into masks, for evaluation.
        sampling: How completions are sampled in training.
        grpo: Constants of the algorithm.
        evaluation: How answers are measured.
        optimizer: Optimizer of the policy; the released recipe is AdamW, 1e-6 constant, weight decay 1e-2.
        reference: How the weights that the policy started from are kept, to measure its drift.
        sample_ahead: Sample each rollout while the policy still trains on the one before: one step off-policy, which
            `grpo.rollout_correction` corrects. For engines in other processes.
        lr_scheduler: Schedule of the learning rate, stepped with the optimizer; None keeps it constant.
        max_skipped_steps: Steps without a finite loss or gradient that a run leaves out; one more ends it.
        judge: Rates the reasoning in `test` and `validate`, but not in a training's validations; None asks nobody.
    """

    def __init__(
        self,
        policy: PolicyBackbone,
        reward: Reward = lazy_instance(PixelThinkReward),
        rollout: RolloutEngine = lazy_instance(HFEngine),
        segmenter: Segmenter = lazy_instance(GrabCut),
        sampling: SamplingConfig = SamplingConfig(),
        grpo: GRPOConfig = GRPOConfig(),
        evaluation: EvaluationConfig = EvaluationConfig(),
        optimizer: OptimizerFactory = lambda parameters: AdamW(parameters, lr=1e-6, weight_decay=1e-2),
        reference: Reference = lazy_instance(FrozenCopy),
        sample_ahead: bool = False,
        lr_scheduler: SchedulerFactory | None = None,
        max_skipped_steps: int = 10,
        judge: Judge | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints leave weights out; on_load_checkpoint is strict
        self.answerer = Answerer(policy, rollout, segmenter)
        self.evaluator = Evaluator(evaluation, judge)
        self.learner = Learner(self.answerer.backbone, optimizer, lr_scheduler, grpo.max_grad_norm, max_skipped_steps)
        self.reward = resolved(reward)
        self.reference = resolved(reference)
        self.sampling, self.grpo, self.sample_ahead = sampling, grpo, sample_ahead
        self.policy: nn.Module | None = None
        self.begun_rollout: Any = None  # from a checkpoint; the engine takes it back at the first step
        self.reference_model: nn.Module | None = None  # where the reference is a model that the trainer places

    def configure_callbacks(self) -> list[Callback]:
        return [Lifecycle(self)]

    def setup(self, stage: str) -> None:
        if stage == "fit":
            check_training(self.trainer, self.answerer, self.reward, self.grpo, self.sampling, self.sample_ahead)

    def configure_model(self) -> None:
        """Loads the policy and, where a fit needs one, its reference; Lightning may call this more than once."""
        if self.policy is not None:
            return
        self.policy = self.answerer.load_policy()
        trainer = self._trainer
        if self.grpo.kl_coef > 0 and (trainer is None or trainer.state.fn == TrainerFn.FITTING):
            self.reference_model = self.reference.build(self.answerer.backbone, self.policy)
        if trainer is not None:
            shard_for(trainer.strategy, list(self.children()))

    def configure_optimizers(self) -> Any:
        assert self.policy is not None
        return self.learner.configure(self.policy)

    def on_fit_start(self) -> None:
        assert self.policy is not None
        self.reward.setup(str(self.device), self.answerer.segmenter)
        self.scorer = Scorer(self.answerer.backbone, self.policy, self.reference, self.grpo)
        self.processes = Processes(self.trainer.strategy)
        self.answerer.engine.load_state_dict(self.begun_rollout)
        self.run_seed = self.trainer.strategy.broadcast(torch.initial_seed() % 2**31)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Any]:
        clock = Stopwatch()
        with clock("generate"), self.answerer.engine.serving():
            rollout = self.next_rollout(batch)
        with clock("reward"):
            rewards = self.reward(rollout)
        advantages = group_advantages(rewards.total, rollout.group_size, self.grpo.scale_by_std)
        with clock("logprobs"):
            experience = self.scorer.experience(rollout, advantages)
        with clock("update"):
            updates = [self.update(minibatch) for minibatch in minibatches(experience, self.grpo)]
        curves = step_curves(rollout, rewards, updates, clock.seconds, self.processes)
        self.log_dict(curves | {"train/skipped_steps": float(self.learner.skipped_steps)})
        self.log("reward", curves["train/reward"], prog_bar=True, logger=False)
        self.log("think_tokens", curves["train/reasoning_tokens"], prog_bar=True, logger=False)
        return {"rollout": rollout, "rewards": rewards, "advantages": advantages}

    def next_rollout(self, batch: PromptBatch) -> RolloutBatch:
        """The rollout to train on: sampled now or, with `sample_ahead`, during the step before, as the next one is."""
        engine, seed = self.answerer.engine, self.step_seed()
        rollout = engine.take(batch, seed) or engine.generate(batch, self.sampling, seed)
        engine.sleep()
        if self.sample_ahead:
            self.log("train/staleness", float(self.global_step - rollout.policy_version))  # in optimizer steps
            if batch.upcoming is not None:
                engine.begin(batch.upcoming, self.sampling, self.step_seed(self.grpo.minibatches * self.grpo.epochs))
        return rollout

    def update(self, minibatch: Experience[EncodedPrompt]) -> Gradients:
        """One optimizer step. The split into micro-batches and processes does not change the gradient."""
        assert self.policy is not None
        gradients = self.scorer.gradients(minibatch, self.processes, self.manual_backward)
        optimizer, schedule = cast("Any", self.optimizers()), cast("Any", self.lr_schedulers())
        loss = gradients.stats["loss"]
        norm = self.learner.step(self.policy, optimizer, schedule, self.processes, loss, self.global_step)
        return replace(gradients, stats={**gradients.stats, "grad_norm": norm})

    def step_seed(self, later: int = 0) -> int:
        """Seed of the sampling `later` optimizer steps from now: a function of the run's seed and the step alone."""
        return (self.run_seed * 1_000_003 + (self.global_step + later) * 1_009) % 2**63

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        return self.evaluator.step(self.answerer, batch)

    test_step = validation_step  # type: ignore[assignment]

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:
        return self.evaluator.step(self.answerer, batch, measuring=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out weights that can be loaded from elsewhere; adds the rollout that was begun for the next step."""
        assert self.policy is not None
        self.learner.save(checkpoint, self.policy)
        if self.sample_ahead:
            checkpoint["rollout_ahead"] = all_gather_object(self.answerer.engine.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.policy is not None
        check_checkpoint(checkpoint, checkpointed(self.state_dict(), self.answerer.backbone, self.policy))
        self.learner.load(checkpoint)
        if begun := checkpoint.get("rollout_ahead"):  # with another number of processes it is sampled anew
            self.begun_rollout = begun[self.global_rank] if len(begun) == self.trainer.world_size else None
