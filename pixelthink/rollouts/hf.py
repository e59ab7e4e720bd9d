"""Rollouts with transformers' `generate`: the live policy samples for itself, so nothing has to be synced."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, SuppressTokensLogitsProcessor

from pixelthink.parsing import parse_completion
from pixelthink.rollouts.base import RolloutEngine, SamplingConfig
from pixelthink.rollouts.uncertainty import top2_uncertainty
from pixelthink.types import Completion, PromptBatch, RolloutBatch

if TYPE_CHECKING:
    from pixelthink.policies.base import PolicyBackbone


class LogprobRecorder(LogitsProcessor):
    """Notes each step's most likely log-probabilities and, one step later, that of the token that was sampled.

    It must stand first in the list, so that it sees the model's own distribution before temperature and bans.
    """

    def __init__(self, top_k: int) -> None:
        self.top_k = top_k
        self.top: list[Tensor] = []
        self.sampled: list[Tensor] = []
        self._last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.note_sampled(input_ids)
        self._last = scores.float().log_softmax(dim=-1)
        self.top.append(self._last.topk(self.top_k, dim=-1).values)
        return scores

    def note_sampled(self, input_ids: Tensor) -> None:
        """Takes the log-probability of the newest token from the distribution that it was sampled from."""
        if self._last is not None:
            self.sampled.append(self._last.gather(-1, input_ids[:, -1:])[:, 0])
            self._last = None


class HFEngine(RolloutEngine):
    """Samples with the policy module itself through transformers `generate`.

    Args:
        batch_size: Completions decoded side by side; 0 means all of a step's. Changes memory and speed, and under
            sampling also which random numbers a completion meets.
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
        per_call = max(1, (self.batch_size or len(batch) * sampling.group_size) // sampling.group_size)
        was_training = self.model.training
        self.model.eval()
        device = next(self.model.parameters()).device
        completions: list[Completion] = []
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for start in range(0, len(batch), per_call):
                completions += self._generate(PromptBatch(batch.prompts[start : start + per_call]), sampling, device)
        self.model.train(was_training)
        return RolloutBatch(
            batch.prompts, tuple(completions), sampling.group_size, seconds=time.perf_counter() - started
        )

    def _generate(self, batch: PromptBatch, sampling: SamplingConfig, device: torch.device) -> list[Completion]:
        inputs = self._left_padded(batch, device)
        recorder = LogprobRecorder(sampling.uncertainty_top_k)
        ban = SuppressTokensLogitsProcessor(self.backbone.forbidden_token_ids, device=str(device))
        sampled = sampling.temperature > 0
        warpers: dict[str, Any] = (
            {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k} if sampled else {}
        )
        output = cast("Any", self.model).generate(
            **inputs,
            max_new_tokens=sampling.max_new_tokens,
            num_return_sequences=sampling.group_size,
            do_sample=sampled,
            eos_token_id=list(self.backbone.stop_token_ids),
            pad_token_id=self.backbone.processor.tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([recorder, ban]),
            **warpers,
        )
        recorder.note_sampled(output)
        tokens = output[:, inputs["input_ids"].shape[1] :]
        logprobs = torch.stack(recorder.sampled, dim=1).tolist()
        top = torch.stack(recorder.top, dim=1).tolist()
        return [self._completion(row, logprobs[i], top[i]) for i, row in enumerate(tokens.tolist())]

    def _left_padded(self, batch: PromptBatch, device: torch.device) -> dict[str, Tensor]:
        encoded = self.backbone.encode(batch.prompts)
        longest = max(len(e.token_ids) for e in encoded)
        pad = self.backbone.processor.tokenizer.pad_token_id
        token_ids = torch.full((len(encoded), longest), pad)
        attention_mask = torch.zeros_like(token_ids)
        for i, item in enumerate(encoded):
            token_ids[i, longest - len(item.token_ids) :] = item.token_ids
            attention_mask[i, longest - len(item.token_ids) :] = 1
        image_token = cast("Any", self.model).config.image_token_id
        inputs = {
            "input_ids": token_ids,
            "attention_mask": attention_mask,
            "mm_token_type_ids": (token_ids == image_token).int(),
            "pixel_values": torch.cat([e.pixel_values for e in encoded]),
            "image_grid_thw": torch.cat([e.image_grid for e in encoded]),
        }
        return {name: tensor.to(device) for name, tensor in inputs.items()}

    def _completion(self, row: list[int], logprobs: list[float], top: list[list[float]]) -> Completion:
        """Cuts a generated row at its first stop token and reads it."""
        stops = self.backbone.stop_token_ids
        end = next((i for i, token in enumerate(row) if token in stops), None)
        finish_reason: Literal["stop", "length"] = "length" if end is None else "stop"
        length = len(row) if end is None else end + 1
        text = self.backbone.processor.tokenizer.decode(row[: length if end is None else end])
        return Completion(
            token_ids=tuple(row[:length]),
            logprobs=tuple(logprobs[:length]),
            text=text,
            finish_reason=finish_reason,
            reasoning_tokens=self.backbone.count_tokens(parse_completion(text).reasoning),
            uncertainty=top2_uncertainty(top[:length]),
        )
