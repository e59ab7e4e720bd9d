"""GRPO for reasoning segmentation, on one screen: see `GRPOModule.training_step`.

Deviations from the released PixelThink code (and the paper, which leaves these open):

1. The loss is averaged over all completion tokens of a minibatch, on all processes; released, over each micro-batch's
   own, so that results move with the micro-batch size. Equal for one micro-batch per minibatch.
2. With one minibatch per rollout the old log-probabilities are the current ones, detached: the ratio is 1 either way
   and one forward is saved.
3. A missing difficulty or uncertainty stops the run and names the sample; released, they become 3.0 and 0.
4. Image and video placeholder tokens cannot be sampled; released, they can, and crash the next forward.
5. Each step samples under its own seed, a function of the run's seed and the step, and each prompt by its place in the
   step's batch, so that a resumed run and one on another number of processes sees the same completions.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import Any

import torch
from jsonargparse import lazy_instance
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW

from pixelthink.components import resolved
from pixelthink.data.datamodule import PromptData
from pixelthink.evaluation.policy_module import EvaluationConfig, PolicyModule
from pixelthink.grpo.advantages import flat_group_share, group_advantages
from pixelthink.grpo.experience import Experience, minibatches
from pixelthink.grpo.loss import GRPOConfig, LossInputs, grpo_loss
from pixelthink.grpo.micro_batches import drop_zero_advantage, in_order, micro_batches
from pixelthink.grpo.mismatch import mismatch_stats, mismatch_sums
from pixelthink.parallel.collectives import all_gather_object
from pixelthink.parallel.sharding import unsharded
from pixelthink.policies.base import EncodedPrompt, PolicyBackbone
from pixelthink.policies.reference import FrozenCopy, Reference
from pixelthink.rewards.base import Reward
from pixelthink.rewards.composite import PixelThinkReward
from pixelthink.rollouts.ahead import RolloutAhead
from pixelthink.rollouts.base import RolloutEngine, SamplingConfig
from pixelthink.rollouts.hf import HFEngine
from pixelthink.segmenters.base import Segmenter
from pixelthink.segmenters.grabcut import GrabCut
from pixelthink.training.optim import OptimizerFactory, SchedulerFactory, with_schedule
from pixelthink.training.rollout_stats import Sums, rollout_sums
from pixelthink.types import PromptBatch, RolloutBatch


class GRPOModule(PolicyModule):
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
    ) -> None:
        super().__init__(policy, rollout, segmenter, evaluation, max_skipped_steps)
        self.automatic_optimization = False
        self.reward = resolved(reward)
        self.sampling = sampling
        self.grpo = grpo
        self.optimizer_factory = optimizer
        self.scheduler_factory = lr_scheduler
        self.reference = resolved(reference)
        self.reference_model: nn.Module | None = None  # where the reference is a model that the trainer places
        self.sample_ahead = sample_ahead
        self.ahead = RolloutAhead()
        self.seconds: dict[str, float] = {}
        self.log_ratios: list[Tensor] = []  # log(policy / rollout) of the tokens of this step's micro-batches

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.answer_style != self.reward.answer_style:
            raise ValueError(
                f"data.prompt asks for answers in style {self.answer_style!r}, but model.reward, a "
                f"{type(self.reward).__name__}, reads {self.reward.answer_style!r}: every answer would fail"
            )
        if self.sample_ahead and stage == "fit":
            self._check_sampling_ahead()

    def _check_sampling_ahead(self) -> None:
        """Refuses to sample ahead where that cannot work, or would bias the gradient unseen."""
        if not self.rollout.samples_beside_training:
            engine = type(self.rollout).__name__
            raise ValueError(f"sample_ahead: {engine} samples in this process; use VLLMServerEngine, or leave it off")
        if self.grpo.rollout_correction == "none":
            raise ValueError("sample_ahead is off-policy: set grpo.rollout_correction, e.g. to token_truncate")
        if not isinstance(getattr(self.trainer, "datamodule", None), PromptData):
            raise ValueError("sample_ahead needs a PromptData datamodule, whose loader knows the next batch")

    def load_models(self) -> None:
        """Loads the policy, and its reference where a fit needs one."""
        super().load_models()
        if self.is_fitting and self.policy is not None and self.grpo.kl_coef > 0:
            self.reference_model = self.reference.build(self.backbone, self.policy)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.reward.setup(str(self.device), self.segmenter)
        self.run_seed = self.trainer.strategy.broadcast(torch.initial_seed() % 2**31)

    def configure_optimizers(self) -> Any:
        return with_schedule(self.optimizer_factory(list(self.trainable_parameters())), self.scheduler_factory)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        with self.timed("generate"), self.rollout.serving():
            rollout = self.next_rollout(batch)
        with self.timed("reward"):
            rewards = self.reward(rollout)
        advantages = group_advantages(rewards.total, rollout.group_size, self.grpo.scale_by_std)
        with self.timed("logprobs"):
            experience = self.collect_logprobs(rollout, advantages)
        with self.timed("update"):
            updates = [self.update(minibatch) for minibatch in minibatches(experience, self.grpo)]
        self.log_step(rollout_sums(rollout, rewards), updates, flat_group_share(rewards.total, rollout.group_size))

    def next_rollout(self, batch: PromptBatch) -> RolloutBatch:
        """The rollout to train on: sampled now or, with `sample_ahead`, during the step before, as the next one is."""
        rollout = self.ahead.take(batch, self.step_seed()) if self.sample_ahead else None
        if rollout is None:
            rollout = self.sample(batch, self.sampling, self.step_seed())
        self.rollout.sleep()
        if self.sample_ahead:
            self.log("train/staleness", float(self.global_step - rollout.policy_version))  # in optimizer steps
        if self.sample_ahead and batch.upcoming is not None:
            self.bring_up_to_date(batch.upcoming)
            steps = self.grpo.minibatches * self.grpo.epochs
            self.ahead.begin(self.rollout, batch.upcoming, self.sampling, self.step_seed(steps))
        return rollout

    def bring_up_to_date(self, batch: PromptBatch, *, evaluating: bool = False) -> None:
        self.ahead.wait()  # weights must not change under a rollout
        super().bring_up_to_date(batch, evaluating=evaluating)

    def collect_logprobs(self, rollout: RolloutBatch, advantages: Tensor) -> Experience[EncodedPrompt]:
        """Scores completions under the reference and, where several minibatches follow, under the policy as it is."""
        assert self.policy is not None
        completions = tuple(torch.tensor(c.token_ids) for c in rollout.completions)
        with unsharded(self.policy):
            prompts = self.backbone.share_images(self.policy, self.backbone.encode(rollout.prompts))
        experience = Experience(
            prompts=prompts,
            completions=completions,
            prompt_index=tuple(i // rollout.group_size for i in range(len(completions))),
            mask=pad_sequence([torch.ones(len(c), dtype=torch.bool) for c in completions], True).to(self.device),
            advantages=advantages.to(self.device),
            rollout_logprobs=pad_sequence([torch.tensor(c.logprobs) for c in rollout.completions], True).to(
                self.device
            ),
        )
        one_update = self.grpo.minibatches == self.grpo.epochs == 1
        old = None if one_update else self.frozen_logprobs(self.policy, experience)
        reference = None
        if self.grpo.kl_coef > 0:
            with self.reference.weights(self.policy) as model:
                reference = self.frozen_logprobs(model, experience)
        return Experience(**{**vars(experience), "old_logprobs": old, "ref_logprobs": reference})

    @torch.no_grad()
    def frozen_logprobs(self, model: nn.Module, experience: Experience[EncodedPrompt]) -> Tensor:
        """Log-probabilities of all completions under a model, (N, T), without gradient."""
        pieces = micro_batches(experience, self.grpo, self.backbone.shares_prefix)
        with unsharded(model):
            scores = [self.backbone.score(model, p.prompts, p.completions, p.prompt_index).logprobs for p in pieces]
        return in_order(scores, pieces)

    def update(self, minibatch: Experience[EncodedPrompt]) -> dict[str, Tensor]:
        """One optimizer step. The split into micro-batches and processes does not change the gradient."""
        tokens = self.processes.sum(minibatch.token_count.float())
        pieces = micro_batches(drop_zero_advantage(minibatch, self.grpo), self.grpo, self.backbone.shares_prefix)
        totals: dict[str, Tensor] = {}
        with self.processes.own_gradients():
            for piece in self.processes.pad_micro_batches(pieces, Experience.masked_dummy):
                output = grpo_loss(self.loss_inputs(piece), self.grpo, normalizer=tokens)
                self.manual_backward(output.loss)
                for name, value in {"loss": output.loss.detach(), **output.stats}.items():
                    totals[name] = totals.get(name, torch.zeros_like(value)) + value
        totals = {name: self.processes.sum(value) for name, value in totals.items()}
        return {**totals, "grad_norm": self.step_optimizer(totals["loss"], self.grpo.max_grad_norm)}

    def loss_inputs(self, piece: Experience[EncodedPrompt]) -> LossInputs:
        """Scores a micro-batch under the policy, with gradient."""
        scores = self.score(piece.prompts, piece.completions, piece.prompt_index, with_entropy=True)
        assert scores.entropy is not None
        entropy = scores.entropy if self.grpo.entropy_coef > 0 else scores.entropy.detach()  # a curve either way
        old = scores.logprobs.detach() if piece.old_logprobs is None else piece.old_logprobs
        if piece.rollout_logprobs is not None:
            self.log_ratios.append((old - piece.rollout_logprobs)[piece.mask])
        return LossInputs(
            scores.logprobs, old, piece.ref_logprobs, piece.mask, piece.advantages, entropy, piece.rollout_logprobs
        )

    def step_seed(self, later: int = 0) -> int:
        """Seed of this step's sampling, the same on all processes: a function of the run's seed and the step.

        Args:
            later: Optimizer steps from now on.
        """
        return (self.run_seed * 1_000_003 + (self.global_step + later) * 1_009) % 2**63

    @contextmanager
    def timed(self, phase: str) -> Any:
        """Notes the wall-clock seconds of a phase of the step."""
        started = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - started

    def log_step(self, sums: Sums, updates: list[dict[str, Tensor]], flat_groups: float) -> None:
        """Sends everything about a step to the logger and the headlines to the progress bar."""
        table = self.processes.sum(torch.tensor(list(sums.values()), dtype=torch.float64, device=self.device))
        stats = {name: total / count for name, (total, count) in zip(sums, table.tolist(), strict=True) if count}
        for name in updates[0]:
            self.log(f"loss/{name}", torch.stack([u[name] for u in updates]).mean())
        for name, value in stats.items():
            self.log(f"train/{name}", value)
        for phase, value in self.seconds.items():
            self.log(f"seconds/{phase}", value)
        step_seconds = sum(self.seconds.values())
        self.log("seconds/step", step_seconds)
        self.log_mismatch()
        self.log("train/flat_groups", flat_groups, sync_dist=self.processes.count > 1)
        self.log("train/tokens_per_second", table[list(sums).index("response_tokens"), 0] / step_seconds)
        self.log("reward", stats["reward"], prog_bar=True, logger=False)
        self.log("think_tokens", stats["reasoning_tokens"], prog_bar=True, logger=False)

    def log_mismatch(self) -> None:
        """Logs how far the rollout engine's distribution is from the policy's, over the tokens that were trained on."""
        log_ratio, self.log_ratios = torch.cat(self.log_ratios), []
        for name, value in mismatch_stats(self.processes.sum(mismatch_sums(log_ratio))).items():
            self.log(f"mismatch/{name}", value)
        p99 = torch.quantile(log_ratio.abs().float(), 0.99)
        self.log("mismatch/log_ratio_abs_p99", self.processes.sum(p99) / self.processes.count)  # the processes' mean

    def checkpointed(self) -> set[str]:
        """As for every policy, without the reference: it is made anew from where the policy started."""
        return {name for name in super().checkpointed() if not name.startswith("reference_model.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the rollout that was begun for the next step, see `RolloutAhead`."""
        super().on_save_checkpoint(checkpoint)
        if self.sample_ahead:
            checkpoint["rollout_ahead"] = all_gather_object(self.ahead.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if begun := checkpoint.get("rollout_ahead"):  # with another number of processes it is sampled anew
            self.ahead.load_state_dict(begun[self.global_rank] if len(begun) == self.trainer.world_size else None)
