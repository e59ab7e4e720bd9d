"""A training step, phase by phase, with the module's own computations: really, or with shapes only."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from pixelthink.grpo.experience import Experience, minibatches
from pixelthink.grpo.loss import GRPOConfig
from pixelthink.grpo.micro_batches import micro_batches
from pixelthink.parallel.processes import Processes
from pixelthink.planning.tracking import Ledger
from pixelthink.policies.base import EncodedPrompt
from pixelthink.policies.vision import tower_is_frozen, vision_features
from pixelthink.rollouts.base import RolloutEngine
from pixelthink.rollouts.decode import RESERVE_STEPS
from pixelthink.rollouts.group_cache import GroupCache, grown
from pixelthink.rollouts.hf import HFEngine
from pixelthink.rollouts.sampling import draw
from pixelthink.training.grpo_module import GRPOModule
from pixelthink.training.learner import trainable_parameters
from pixelthink.training.scorer import Scorer

FILES = {"policies/logprobs.py": "logits", "policies/vision.py": "vision"}
"""What tensors are for that these files ask for, see `Ledger`."""

Phases = dict[str, Counter[str]]
"""Bytes by purpose at the peak of each phase."""


@dataclass(frozen=True)
class StepSize:
    """How much one process has to do in a step.

    Attributes:
        prompts: Prompts of the process.
        text_tokens: Tokens of a prompt besides those of its image.
        image_size: Width and height of each image in pixels.
        group_size: Completions of each prompt.
        response_tokens: Tokens of each completion.
    """

    prompts: int
    text_tokens: int
    image_size: tuple[int, int]
    group_size: int
    response_tokens: int


def encoded_prompts(model: nn.Module, size: StepSize) -> list[EncodedPrompt]:
    """Prompts of that size for a Qwen-VL model, of random tokens and pixels."""
    config = cast("Any", model).config
    vision = config.vision_config
    width, height = (side // vision.patch_size for side in size.image_size)
    text = torch.zeros(size.text_tokens, dtype=torch.int64)
    image = torch.full((width * height // vision.spatial_merge_size**2,), config.image_token_id)
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    token_ids, grid = torch.cat([text[:2], image, text[2:]]), torch.tensor([[1, height, width]])
    return [EncodedPrompt(token_ids, torch.zeros(width * height, values), grid) for _ in range(size.prompts)]


def experience_of(prompts: Sequence[EncodedPrompt], size: StepSize, config: GRPOConfig) -> Experience[EncodedPrompt]:
    """Completions of full length behind prompts, with different advantages so that none is left out."""
    count = len(prompts) * size.group_size
    completions = tuple(torch.zeros(size.response_tokens, dtype=torch.int64) for _ in range(count))

    def table(needed: bool = True) -> Tensor | None:
        return torch.zeros(count, size.response_tokens) if needed else None

    return Experience(
        prompts=prompts,
        completions=completions,
        prompt_index=tuple(i // size.group_size for i in range(count)),
        mask=torch.ones(count, size.response_tokens, dtype=torch.int64).bool(),
        advantages=torch.arange(1, count + 1),
        old_logprobs=table(config.minibatches * config.epochs > 1),
        ref_logprobs=table(config.kl_coef > 0),
        rollout_logprobs=table(),
    )


def run_step(
    module: GRPOModule,
    engine: RolloutEngine,
    optimizer: Optimizer,
    size: StepSize,
    ledger: Ledger | None = None,
    autocast: AbstractContextManager[Any] | None = None,
) -> Phases:
    """Takes a training step with completions of full length, by the module's own scorer.

    What is not done: parsing and rewarding, which hold no tensors to speak of, and decoding but for its last step.
    Micro-batches are equally large or smaller than the first, so two of them stand for all.

    Args:
        module: With its policy, and its reference where there is one.
        engine: The run's; only `HFEngine` holds anything in this process.
        optimizer: Of the policy.
        size: How much there is to do.
        ledger: Where entered, the phases' peaks are read from it.
        autocast: The precision's context.

    Returns:
        Peaks by phase: `images`, `rollout`, `reference`, `update`, `optimizer`. Empty without a ledger.
    """
    policy = module.policy
    assert policy is not None
    scorer = Scorer(module.answerer.backbone, policy, module.reference, module.grpo)
    phases: Phases = {}
    ledger = ledger or Ledger()
    with autocast or nullcontext():
        prompts, phases["images"] = with_features(module, encoded_prompts(policy, size), ledger)
        if isinstance(engine, HFEngine):
            with ledger.watch() as peak:
                decode_last_token(module, engine, prompts, size, ledger)
            phases["rollout"] = peak()
        if not tower_is_frozen(cast("Any", policy).model):
            prompts = [replace(prompt, features=None) for prompt in prompts]
        experience = experience_of(prompts, size, module.grpo)
        with ledger.watch() as peak:
            score_without_gradient(scorer, experience)
        phases["reference"] = peak()
        with ledger.watch() as peak:
            backward(scorer, next(minibatches(experience, module.grpo)), ledger)
        phases["update"] = peak()
    with ledger.watch() as peak:
        nn.utils.clip_grad_norm_(list(trainable_parameters(policy)), module.grpo.max_grad_norm)
        optimizer.step()
    phases["optimizer"] = peak()
    optimizer.zero_grad()
    return phases


def with_features(
    module: GRPOModule, prompts: Sequence[EncodedPrompt], ledger: Ledger
) -> tuple[list[EncodedPrompt], Counter[str]]:
    """Prompts with vision features, and the peak of the tower's pass over all of them at once.

    One image goes through the tower; the pass over n equal ones holds n times as much.
    """
    core = cast("Any", module.policy).model
    before = ledger.live["vision"]
    with ledger.watch() as peak, torch.no_grad():
        (features,) = vision_features(core, prompts[:1])
    found = peak()
    found["vision"] = before + (found["vision"] - before) * len(prompts)
    copies = [copy.deepcopy(features) for _ in prompts[1:]]
    ledger.label([tensor for f in copies for tensor in (f.images, *f.deepstack)], "vision")
    return [replace(p, features=f) for p, f in zip(prompts, [features, *copies], strict=True)], found


def score_without_gradient(scorer: Scorer, experience: Experience[EncodedPrompt]) -> None:
    """Scores the largest micro-batch under the models that `Scorer.experience` scores all of them under."""
    largest = largest_of(micro_batches(experience, scorer.config, scorer.backbone.shares_prefix))
    parts = largest.prompts, largest.completions, largest.prompt_index
    if experience.old_logprobs is not None:
        scorer.frozen_logprobs(scorer.policy, *parts)
    if experience.ref_logprobs is not None:
        with scorer.reference.weights(scorer.policy) as model:
            scorer.frozen_logprobs(model, *parts)


def backward(scorer: Scorer, minibatch: Experience[EncodedPrompt], ledger: Ledger) -> None:
    """Forward and backward of the largest micro-batch; where there are several, beside the gradients of another."""
    pieces = micro_batches(minibatch, scorer.config, scorer.backbone.shares_prefix)
    if len(pieces) > 1:
        for parameter in trainable_parameters(scorer.policy):
            parameter.grad = torch.zeros_like(parameter)
            ledger.label([parameter.grad], "gradients")
    scorer.gradients(largest_of(pieces), Processes(SingleDeviceStrategy(torch.device("cpu"))))


def largest_of(pieces: Sequence[Experience[EncodedPrompt]]) -> Experience[EncodedPrompt]:
    """The micro-batch with the most tokens."""
    return max(pieces, key=lambda piece: int(piece.token_count))


def decode_last_token(
    module: GRPOModule, engine: HFEngine, prompts: Sequence[EncodedPrompt], size: StepSize, ledger: Ledger
) -> None:
    """Reads prompts, and decodes the last token of all their completions beside a full key-value cache."""
    model = module.policy
    assert model is not None
    together = max(1, engine.batch_size // size.group_size) if engine.batch_size else len(prompts)
    prompts = prompts[:together]
    model.eval()
    with torch.no_grad():
        cache = GroupCache(reserve=size.group_size * min(size.response_tokens, RESERVE_STEPS))
        prefill = module.answerer.backbone.prefill(model, prompts, cache)
        cache.open_prompts(prefill.lengths)
        slots = torch.arange(size.group_size).repeat(len(prompts), 1)
        fill(cache, slots, size.response_tokens)
        ledger.label([tensor for layer in cache.layers for tensor in layer], "KV cache")
        cache.open(slots)
        positions = torch.full_like(slots, 1)
        logits = module.answerer.backbone.decode(model, torch.zeros_like(slots), positions, cache, cache.visible(slots))
        uniform = torch.zeros(slots.numel())
        draw(logits.flatten(0, 1), torch.zeros(1, dtype=torch.int64), module.sampling, uniform)
    model.train()


def fill(cache: GroupCache, slots: Tensor, steps: int) -> None:
    """Brings a cache that holds prompts to the size that it has before the last of the steps."""
    capacity = cache.columns + cache.reserve
    for _ in range(steps - 1):
        cache.open(slots)
        if capacity < cache.columns:
            capacity = grown(cache.columns)
    for held in cache.layers:
        for i, tensor in enumerate(held):
            held[i] = tensor.new_empty(tensor.shape[0], tensor.shape[1], capacity, tensor.shape[3])
