"""A training step, phase by phase, with the module's own computations: really, or with shapes only."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer

from pixelthink.grpo.experience import Experience, minibatches
from pixelthink.grpo.loss import grpo_loss
from pixelthink.grpo.micro_batches import drop_zero_advantage, micro_batches
from pixelthink.planning.tracking import Ledger
from pixelthink.policies.base import EncodedPrompt
from pixelthink.policies.vision import tower_is_frozen, vision_features
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


def experience_of(prompts: Sequence[EncodedPrompt], size: StepSize) -> Experience[EncodedPrompt]:
    """Completions of full length behind prompts, with different advantages so that none is left out."""
    count = len(prompts) * size.group_size
    completions = tuple(torch.zeros(size.response_tokens, dtype=torch.int64) for _ in range(count))
    return Experience(
        prompts=prompts,
        completions=completions,
        prompt_index=tuple(i // size.group_size for i in range(count)),
        mask=pad_sequence([torch.ones(len(c), dtype=torch.bool) for c in completions], True),
        advantages=torch.arange(1, count + 1),
        rollout_logprobs=torch.zeros(count, size.response_tokens),
    )


def run_step(
    module: GRPOModule,
    optimizer: Optimizer,
    size: StepSize,
    ledger: Ledger | None = None,
    autocast: AbstractContextManager[Any] | None = None,
) -> Phases:
    """Takes a training step with completions of full length.

    What is not done: parsing and rewarding, which hold no tensors to speak of, and decoding but for its last step.
    Micro-batches are equally large or smaller than the first, so two of them stand for all.

    Args:
        module: With its policy, and its reference where there is one.
        optimizer: Of the policy.
        size: How much there is to do.
        ledger: Where entered, the phases' peaks are read from it.
        autocast: The precision's context.

    Returns:
        Peaks by phase: `images`, `rollout`, `reference`, `update`, `optimizer`. Empty without a ledger.
    """
    model = module.policy
    assert model is not None
    phases: Phases = {}
    ledger = ledger or Ledger()
    with autocast or nullcontext():
        prompts, phases["images"] = with_features(module, encoded_prompts(model, size), ledger)
        if isinstance(module.answerer._rollout, HFEngine):
            with ledger.watch() as peak:
                decode_last_token(module, module.answerer._rollout, prompts, size, ledger)
            phases["rollout"] = peak()
        if not tower_is_frozen(cast("Any", model).model):
            prompts = [replace(prompt, features=None) for prompt in prompts]
        experience = experience_of(prompts, size)
        with ledger.watch() as peak:
            experience = with_frozen_logprobs(module, experience)
        phases["reference"] = peak()
        with ledger.watch() as peak:
            backward(module, next(minibatches(experience, module.grpo)), ledger)
        phases["update"] = peak()
    with ledger.watch() as peak:
        nn.utils.clip_grad_norm_(list(trainable_parameters(model)), module.grpo.max_grad_norm)
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


def with_frozen_logprobs(module: GRPOModule, experience: Experience[EncodedPrompt]) -> Experience[EncodedPrompt]:
    """The experience with the log-probabilities that the module would add; the largest micro-batch is computed."""
    assert module.policy is not None
    found: dict[str, Tensor] = {}
    if module.grpo.minibatches * module.grpo.epochs > 1:
        frozen(module, module.policy, experience)
        found["old_logprobs"] = torch.zeros(experience.mask.shape)
    if module.grpo.kl_coef > 0:
        with module.reference.weights(module.policy) as model:
            frozen(module, model, experience)
        found["ref_logprobs"] = torch.zeros(experience.mask.shape)
    return Experience(**{**vars(experience), **found})


def scorer_of(module: GRPOModule) -> Scorer:
    """The module's scorer, as `on_fit_start` makes it."""
    assert module.policy is not None
    return Scorer(module.answerer.backbone, module.policy, module.reference, module.grpo)


def frozen(module: GRPOModule, model: nn.Module, experience: Experience[EncodedPrompt]) -> None:
    """Scores the largest micro-batch without gradient."""
    largest = first_micro_batch(module, experience)
    scorer_of(module).frozen_logprobs(model, largest.prompts, largest.completions, largest.prompt_index)


def first_micro_batch(module: GRPOModule, experience: Experience[EncodedPrompt]) -> Experience[EncodedPrompt]:
    """The micro-batch with the most tokens."""
    pieces = micro_batches(experience, module.grpo, module.answerer.backbone.shares_prefix)
    return max(pieces, key=lambda piece: int(piece.token_count))


def backward(module: GRPOModule, minibatch: Experience[EncodedPrompt], ledger: Ledger) -> None:
    """Forward and backward of the largest micro-batch; where there are several, beside the gradients of another."""
    pieces = micro_batches(
        drop_zero_advantage(minibatch, module.grpo), module.grpo, module.answerer.backbone.shares_prefix
    )
    if len(pieces) > 1:
        assert module.policy is not None
        for parameter in trainable_parameters(module.policy):
            parameter.grad = torch.zeros_like(parameter)
            ledger.label([parameter.grad], "gradients")
    largest = max(pieces, key=lambda piece: int(piece.token_count))
    grpo_loss(scorer_of(module).loss_inputs(largest), module.grpo, normalizer=minibatch.token_count).loss.backward()


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
