"""The way of sampling that other trainers use, as an engine to be measured against.

python -m pixelthink fit --model.rollout=benchmarks.plain_generate.PlainGenerate --config configs/tiny.yaml
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from pixelthink.policies.base import PolicyBackbone
from pixelthink.rollouts.base import RolloutEngine, SamplingConfig
from pixelthink.rollouts.completions import make_completion
from pixelthink.types import Completion, PromptBatch, RolloutBatch


class PlainGenerate(RolloutEngine):
    """transformers' `generate` on left-padded rows: each prompt and image is read once for each of its completions."""

    def setup(self, backbone: PolicyBackbone, model: nn.Module) -> None:
        self.backbone = backbone
        self.model: Any = model

    @torch.no_grad()
    def generate(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> RolloutBatch:
        started = time.perf_counter()
        torch.manual_seed(seed)
        processor = self.backbone.processor
        texts = [
            processor.apply_chat_template(list(p.messages), tokenize=False, add_generation_prompt=True)
            for p in batch.prompts
            for _ in range(sampling.group_size)
        ]
        images = [[p.image] for p in batch.prompts for _ in range(sampling.group_size)]
        inputs = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            filters = {"top_k": sampling.top_k, "top_p": sampling.top_p}
            drawn = {"do_sample": True, "temperature": sampling.temperature, **filters}
        was_training = self.model.training
        self.model.eval()
        output = self.model.generate(
            **inputs.to(self.model.device),
            **drawn,
            max_new_tokens=sampling.max_new_tokens,
            suppress_tokens=list(self.backbone.forbidden_token_ids),
            eos_token_id=list(self.backbone.stop_token_ids) or None,
            pad_token_id=processor.tokenizer.pad_token_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
        self.model.train(was_training)
        sampled = output.sequences[:, inputs["input_ids"].shape[1] :]
        completions = self._completions(sampled, torch.stack(output.logits, dim=1), sampling)
        return RolloutBatch(batch.prompts, completions, sampling.group_size, seconds=time.perf_counter() - started)

    def _completions(
        self, sampled: torch.Tensor, logits: torch.Tensor, sampling: SamplingConfig
    ) -> tuple[Completion, ...]:
        """Cuts rows (N, T) at their first end token and measures them; `logits` are (N, T, V)."""
        logprobs = logits.float().log_softmax(dim=-1)
        chosen = logprobs.gather(2, sampled[:, :, None])[:, :, 0]
        top = logprobs.topk(sampling.uncertainty_top_k, dim=-1).values
        ends = torch.isin(sampled, torch.tensor(self.backbone.stop_token_ids, dtype=sampled.dtype))
        completions = []
        for row, tokens in enumerate(sampled.tolist()):
            stopped = bool(ends[row].any())
            length = int(ends[row].int().argmax()) + 1 if stopped else len(tokens)
            values = (tokens[:length], chosen[row, :length].tolist(), top[row, :length].tolist())
            completions.append(make_completion(self.backbone, *values, stopped))
        return tuple(completions)
