"""Supervised cold start: teach a policy to see, the answer format, and reasoning styles in stated proportions."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from jsonargparse import lazy_instance
from torch import Tensor
from torch.optim import AdamW

from pixelthink.data.prompts import PromptStyle
from pixelthink.evaluation.policy_module import EvaluationConfig, PolicyModule
from pixelthink.parsing import format_response
from pixelthink.policies.base import PolicyBackbone
from pixelthink.rollouts.base import RolloutEngine
from pixelthink.rollouts.hf import HFEngine
from pixelthink.segmenters.base import Segmenter
from pixelthink.segmenters.grabcut import GrabCut
from pixelthink.training.optim import OptimizerFactory, SchedulerFactory, with_schedule
from pixelthink.types import LEVELS, Level, Prompt, PromptBatch, Sample, difficulty_level


@dataclass(frozen=True)
class Recipe:
    """One way to respond, when and how often to show it.

    Attributes:
        reasoning: Name of the reference reasoning, a key of the sample's `reasoning`; None leaves its share of the
            samples out of the step, so that a stage need not pay for all that a batch holds.
        weight: Share of the samples, relative to the weights of the other recipes of the same time.
        prompt: Wording of the question for this recipe; None keeps the data's own.
        answer: Whether the response goes on to the answer, or ends with the reasoning (to learn captioning, say).
        first_step: The recipe is shown from this optimizer step on.
        last_step: And until this one, exclusive; None means to the end.
        levels: Difficulty levels of the samples that it is shown for; samples for which no recipe is shown are left out
            of the step.
    """

    reasoning: str | None
    weight: float = 1.0
    prompt: PromptStyle | None = None
    answer: bool = True
    first_step: int = 0
    last_step: int | None = None
    levels: Sequence[Level] = LEVELS

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError(f"recipe {self.reasoning!r}: levels must not be empty")
        if self.weight <= 0:
            raise ValueError(f"recipe {self.reasoning!r}: weight must be positive, not {self.weight}")
        if not 0 <= self.first_step < (self.first_step + 1 if self.last_step is None else self.last_step):
            raise ValueError(f"recipe {self.reasoning!r}: no step lies from {self.first_step} to {self.last_step}")

    def shown_at(self, step: int) -> bool:
        """Whether the recipe is shown at an optimizer step."""
        return self.first_step <= step and (self.last_step is None or step < self.last_step)

    def fits(self, sample: Sample) -> bool:
        """Whether it is shown for a sample; one that nobody rated belongs to every level."""
        return sample.difficulty is None or difficulty_level(sample.difficulty) in self.levels


class SFTModule(PolicyModule):
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
    ) -> None:
        super().__init__(policy, rollout, segmenter, evaluation, max_skipped_steps)
        if not recipes or micro_batch_size < 1 or max_grad_norm <= 0:
            raise ValueError("sft: recipes must not be empty; micro_batch_size and max_grad_norm must be positive")
        self.automatic_optimization = False
        self.recipes = list(recipes)
        self.optimizer_factory = optimizer
        self.scheduler_factory = lr_scheduler
        self.micro_batch_size = micro_batch_size
        self.max_grad_norm = max_grad_norm

    def setup(self, stage: str) -> None:
        super().setup(stage)
        prompts = [recipe.prompt for recipe in self.recipes if recipe.reasoning is not None]
        asked = {self.answer_style if prompt is None else prompt.answer_style for prompt in prompts}
        if stage == "fit" and not asked <= {"single"}:
            raise ValueError("sft: the prompt asks for several objects, but recipes teach the answer with one box")

    def configure_optimizers(self) -> Any:
        return with_schedule(self.optimizer_factory(list(self.trainable_parameters())), self.scheduler_factory)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        examples = self.examples(batch)
        length = sum(len(response) for _, response in examples)
        tokens = self.processes.sum(torch.tensor(float(length), device=self.device))
        starts = range(0, len(examples), self.micro_batch_size)
        pieces = [(examples[start : start + self.micro_batch_size], 1.0) for start in starts]
        loss = torch.zeros((), device=self.device)
        with self.processes.own_gradients():
            for piece, weight in self.processes.pad_micro_batches(pieces, lambda last: (last[0][:1], 0.0)):
                part = self.negative_log_likelihood(piece) * weight / tokens
                self.manual_backward(part)
                loss += part.detach()
        loss = self.processes.sum(loss)
        self.log("grad_norm", self.step_optimizer(loss, self.max_grad_norm))
        self.log("loss", loss, prog_bar=True)

    def examples(self, batch: PromptBatch) -> list[tuple[Prompt, Tensor]]:
        """What this step teaches: an example for each sample that a recipe is shown for.

        Raises:
            ValueError: if there is none.
        """
        found = [(prompt, self.recipe_of(prompt.sample)) for prompt in batch.prompts]
        examples = [self.example(prompt, recipe) for prompt, recipe in found if recipe is not None]
        if not examples:
            raise ValueError(f"sft: no recipe is shown for any sample of step {self.global_step}")
        return examples

    def example(self, prompt: Prompt, recipe: Recipe) -> tuple[Prompt, Tensor]:
        """A prompt in a recipe's wording, and the token ids of the response to be learned, stop token included.

        Raises:
            ValueError: if the sample has no target or lacks the recipe's reference reasoning; names it.
        """
        if recipe.prompt is not None:
            prompt = replace(prompt, messages=recipe.prompt.messages(prompt.sample.question))
        if recipe.reasoning is None or recipe.reasoning not in prompt.sample.reasoning:
            known = ", ".join(prompt.sample.reasoning) or "none"
            raise ValueError(f"sample {prompt.sample.id!r} has no {recipe.reasoning!r} reasoning; it has: {known}")
        if not prompt.targets:
            raise ValueError(f"sample {prompt.sample.id!r} has no target to be learned")
        text = format_response(prompt.sample.reasoning[recipe.reasoning], prompt.targets[0] if recipe.answer else None)
        tokenizer = self.backbone.processor.tokenizer
        ids = tokenizer.encode(text, add_special_tokens=False)
        return prompt, torch.tensor([*ids, self.backbone.stop_token_ids[0]])

    def recipe_of(self, sample: Sample) -> Recipe | None:
        """The recipe of a sample, drawn by weight from those shown for it at this step by a hash of its id.

        Returns:
            None where none is shown for the sample's level, or the one drawn leaves it out.
        """
        shown = [recipe for recipe in self.recipes if recipe.shown_at(self.global_step) and recipe.fits(sample)]
        ends = list(accumulate(recipe.weight for recipe in shown))
        point = zlib.crc32(f"recipe:{sample.id}".encode()) / 2**32
        drawn = next((recipe for recipe, end in zip(shown, ends, strict=True) if point * ends[-1] < end), None)
        return None if drawn is None or drawn.reasoning is None else drawn

    def negative_log_likelihood(self, examples: Sequence[tuple[Prompt, Tensor]]) -> Tensor:
        """Sum over all response tokens of −log p(token)."""
        prompts = self.backbone.encode([prompt for prompt, _ in examples])
        responses = [response for _, response in examples]
        scores = self.score(prompts, responses, range(len(examples)))
        return -scores.logprobs.sum()  # padding scores are 0
