"""Supervised cold start: teach a policy to see, the answer format, and reasoning styles in stated proportions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from jsonargparse import lazy_instance
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import AdamW

from pixelthink.answering.answerer import Answerer
from pixelthink.callbacks.lifecycle import Lifecycle
from pixelthink.errors import UserError
from pixelthink.evaluation.config import EvaluationConfig
from pixelthink.evaluation.evaluator import Evaluator
from pixelthink.evaluation.interface import SegmentationModule
from pixelthink.judges.base import Judge
from pixelthink.parallel.processes import Processes
from pixelthink.parallel.strategy import shard_for
from pixelthink.parsing import format_response
from pixelthink.policies.base import PolicyBackbone
from pixelthink.rollouts.base import RolloutEngine
from pixelthink.rollouts.hf import HFEngine
from pixelthink.segmenters.base import Segmenter
from pixelthink.segmenters.grabcut import GrabCut
from pixelthink.training.learner import Learner, check_checkpoint, checkpointed
from pixelthink.training.optim import OptimizerFactory, SchedulerFactory
from pixelthink.training.recipes import Recipe, draw_recipe
from pixelthink.training.scorer import score_with_gradient
from pixelthink.types import Prediction, Prompt, PromptBatch


class SFTModule(SegmentationModule):
    """Trains a policy on reference reasoning and true answers by token cross-entropy.

    Args:
        policy: Model family and weights to start from.
        recipes: Which reference reasoning to show, when, how often and under which prompt. Which sample shows which
            is a function of its id and the step.
        rollout: Engine that answers in evaluation.
        segmenter: Turns answers into masks, for evaluation.
        evaluation: How answers are measured.
        optimizer: Optimizer of the policy.
        lr_scheduler: Schedule of the learning rate, stepped with the optimizer; None keeps it constant.
        micro_batch_size: Responses per forward and backward; changes memory and speed, never the gradient.
        max_grad_norm: Gradients are scaled down to this norm.
        max_skipped_steps: Steps without a finite loss or gradient that a run leaves out; one more ends it.
        judge: Rates the reasoning in `test` and `validate`, but not in a training's validations; None asks nobody.
    """

    def __init__(
        self,
        policy: PolicyBackbone,
        recipes: Sequence[Recipe],
        rollout: RolloutEngine = lazy_instance(HFEngine),
        segmenter: Segmenter = lazy_instance(GrabCut),
        evaluation: EvaluationConfig = EvaluationConfig(),
        optimizer: OptimizerFactory = lambda parameters: AdamW(parameters, lr=1e-5, weight_decay=1e-2),
        lr_scheduler: SchedulerFactory | None = None,
        micro_batch_size: int = 64,
        max_grad_norm: float = 1.0,
        max_skipped_steps: int = 10,
        judge: Judge | None = None,
    ) -> None:
        super().__init__()
        if not recipes or micro_batch_size < 1:
            raise UserError("sft: recipes must not be empty, and micro_batch_size must be at least 1")
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints leave weights out; on_load_checkpoint is strict
        self.answerer = Answerer(policy, rollout, segmenter)
        self.evaluator = Evaluator(evaluation, judge)
        self.learner = Learner(self.answerer.backbone, optimizer, lr_scheduler, max_grad_norm, max_skipped_steps)
        self.recipes = list(recipes)
        self.micro_batch_size = micro_batch_size
        self.policy: nn.Module | None = None

    def configure_callbacks(self) -> list[Callback]:
        return [Lifecycle(self)]

    def setup(self, stage: str) -> None:
        own = getattr(getattr(self.trainer, "datamodule", None), "prompt", None)
        prompts = [recipe.prompt or own for recipe in self.recipes if recipe.reasoning is not None]
        if stage == "fit" and any(prompt is not None and prompt.answer_style != "single" for prompt in prompts):
            raise UserError("sft: the prompt asks for several objects, but recipes teach the answer with one box")

    def configure_model(self) -> None:
        """Loads the policy; Lightning may call this more than once."""
        if self.policy is None:
            self.policy = self.answerer.load_policy()
            shard_for(self.trainer.strategy, [self.policy])

    def configure_optimizers(self) -> Any:
        assert self.policy is not None
        return self.learner.configure(self.policy)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        assert self.policy is not None
        examples = self.examples(batch)
        processes = Processes(self.trainer.strategy)
        length = sum(len(response) for _, response in examples)
        tokens = processes.sum(torch.tensor(float(length), device=self.device))
        starts = range(0, len(examples), self.micro_batch_size)
        pieces = [(examples[start : start + self.micro_batch_size], 1.0) for start in starts]
        loss = torch.zeros((), device=self.device)
        with processes.own_gradients():
            for piece, weight in processes.pad_micro_batches(pieces, lambda last: (last[0][:1], 0.0)):
                part = self.negative_log_likelihood(piece) * weight / tokens
                self.manual_backward(part)
                loss += part.detach()
        loss = processes.sum(loss)
        optimizer, schedule = cast("Any", self.optimizers()), cast("Any", self.lr_schedulers())
        norm = self.learner.step(self.policy, optimizer, schedule, processes, loss, self.global_step)
        self.log_dict({"loss/loss": loss, "loss/grad_norm": norm})
        self.log("train/skipped_steps", float(self.learner.skipped_steps))
        self.log("loss", loss, prog_bar=True, logger=False)

    def examples(self, batch: PromptBatch) -> list[tuple[Prompt, Tensor]]:
        """What this step teaches: an example for each sample that a recipe is shown for.

        Raises:
            UserError: if there is none.
        """
        drawn = [(prompt, draw_recipe(self.recipes, prompt.sample, self.global_step)) for prompt in batch.prompts]
        examples = [self.example(prompt, recipe) for prompt, recipe in drawn if recipe is not None]
        if not examples:
            raise UserError(f"sft: no recipe is shown for any sample of step {self.global_step}")
        return examples

    def example(self, prompt: Prompt, recipe: Recipe) -> tuple[Prompt, Tensor]:
        """A prompt in a recipe's wording, and the token ids of the response to be learned, stop token included.

        Raises:
            UserError: if the sample has no target or lacks the recipe's reference reasoning; names it.
        """
        if recipe.prompt is not None:
            prompt = replace(prompt, messages=recipe.prompt.messages(prompt.sample.question))
        if recipe.reasoning is None or recipe.reasoning not in prompt.sample.reasoning:
            known = ", ".join(prompt.sample.reasoning) or "none"
            raise UserError(f"sample {prompt.sample.id!r} has no {recipe.reasoning!r} reasoning; it has: {known}")
        if not prompt.targets:
            raise UserError(f"sample {prompt.sample.id!r} has no target to be learned")
        text = format_response(prompt.sample.reasoning[recipe.reasoning], prompt.targets[0] if recipe.answer else None)
        backbone = self.answerer.backbone
        ids = backbone.processor.tokenizer.encode(text, add_special_tokens=False)
        return prompt, torch.tensor([*ids, backbone.stop_token_ids[0]])

    def negative_log_likelihood(self, examples: Sequence[tuple[Prompt, Tensor]]) -> Tensor:
        """Sum over all response tokens of −log p(token)."""
        assert self.policy is not None
        backbone = self.answerer.backbone
        prompts = backbone.encode([prompt for prompt, _ in examples])
        responses = [response for _, response in examples]
        scores = score_with_gradient(backbone, self.policy, prompts, responses, range(len(examples)))
        return -scores.logprobs.sum()  # padding scores are 0

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        return self.evaluator.step(self.answerer, batch)

    test_step = validation_step  # type: ignore[assignment]

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:
        return self.evaluator.step(self.answerer, batch, measuring=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.policy is not None
        self.learner.save(checkpoint, self.policy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.policy is not None
        check_checkpoint(checkpoint, checkpointed(self.state_dict(), self.answerer.backbone, self.policy))
        self.learner.load(checkpoint)
