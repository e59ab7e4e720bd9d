"""Rollouts with the policy module itself: it samples for itself, so nothing has to be synced."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from pixelthink.parsing import parse_completion
from pixelthink.rollouts.base import RolloutEngine, SamplingConfig
from pixelthink.rollouts.decode import Decoded, decode_groups
from pixelthink.rollouts.uncertainty import top2_uncertainty
from pixelthink.types import Completion, PromptBatch, RolloutBatch

if TYPE_CHECKING:
    from pixelthink.policies.base import PolicyBackbone


class HFEngine(RolloutEngine):
    """Samples with the transformers module that is being trained.

    Each prompt and image is encoded once, its completions share its keys and values, and finished ones stop costing.

    Args:
        batch_size: Completions decoded side by side, rounded to whole groups; 0 means all of a step's. Changes memory
            and speed, not which random numbers a completion meets.
    """

    def __init__(self, batch_size: int = 0) -> None:
        if batch_size < 0:
            raise ValueError("rollout.batch_size must not be negative")
        self.batch_size = batch_size

    def setup(self, backbone: PolicyBackbone, model: nn.Module) -> None:
        self.backbone = backbone
        self.model = model

    @torch.no_grad()
    def generate(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> RolloutBatch:
        started = time.perf_counter()
        group = sampling.group_size
        per_call = max(1, self.batch_size // group) if self.batch_size else len(batch)
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(len(batch) * group, sampling.max_new_tokens, generator=generator)
        encoded = self.backbone.encode(batch.prompts)
        was_training = self.model.training
        self.model.eval()
        completions: list[Completion] = []
        for start in range(0, len(batch), per_call):
            end = start + per_call
            numbers = uniform[start * group : end * group]
            completions += self._completions(
                decode_groups(self.backbone, self.model, encoded[start:end], sampling, numbers)
            )
        self.model.train(was_training)
        return RolloutBatch(batch.prompts, tuple(completions), group, seconds=time.perf_counter() - started)

    def _completions(self, decoded: Decoded) -> list[Completion]:
        columns = (decoded.token_ids, decoded.logprobs, decoded.top_logprobs, decoded.lengths, decoded.stopped)
        return [self._completion(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def _completion(
        self, token_ids: list[int], logprobs: list[float], top: list[list[float]], length: int, stopped: bool
    ) -> Completion:
        finish_reason: Literal["stop", "length"] = "stop" if stopped else "length"
        text = self.backbone.processor.tokenizer.decode(token_ids[: length - stopped])
        return Completion(
            token_ids=tuple(token_ids[:length]),
            logprobs=tuple(logprobs[:length]),
            text=text,
            finish_reason=finish_reason,
            reasoning_tokens=self.backbone.count_tokens(parse_completion(text).reasoning),
            uncertainty=top2_uncertainty(top[:length]),
        )
