"""Qwen2.5-VL policies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pixelthink.errors import UserError
from pixelthink.geometry import AnswerConvention
from pixelthink.policies.adapters import LoRA, add_adapter
from pixelthink.policies.attention import use_segments
from pixelthink.policies.base import EncodedPrompt, PolicyBackbone, Prefill, TokenScores
from pixelthink.policies.loading import check_family, clear_errors, require_checkpoint
from pixelthink.policies.logprobs import selected_logprobs
from pixelthink.policies.padded import padded_hidden, padded_rows
from pixelthink.policies.quantization import Quantization, is_quantized, quantization_config, use_one_kernel
from pixelthink.policies.shared_prefix import PREFIX_KERNELS, attention_mask, packed_hidden
from pixelthink.policies.vision import tower_is_frozen, vision_features
from pixelthink.types import Prompt


class Qwen25VL(PolicyBackbone):
    """Qwen2.5-VL from a local folder or a hub id.

    Args:
        path: Folder in Hugging Face format, or a hub id.
        dtype: Precision of the weights.
        attn_implementation: Attention kernel, as transformers names them (`sdpa`, `flash_attention_2`, `eager`).
        freeze_vision_tower: Train the language model only, as the paper does.
        gradient_checkpointing: Recompute activations in backward: less memory, about a third more time.
        local_files_only: Never ask a model hub.
        logprobs: `shared_prefix` computes each prompt once for all its completions, `padded` once for each completion:
            the same numbers (`tests/unit/test_shared_prefix.py`), slower.
        min_pixels: The processor enlarges smaller images; None keeps the checkpoint's own limit.
        max_pixels: The processor shrinks larger images; None keeps the checkpoint's own limit.
        adapter: Train a low-rank adapter and freeze all other weights; None trains the weights themselves.
        quantization: Keep the language model in 4 bits (`nf4`) or 8 (`int8`), by bitsandbytes; trained with an adapter
            only.
    """

    model_type = "qwen2_5_vl"
    convention: AnswerConvention = "pixels"

    def __init__(
        self,
        path: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
        attn_implementation: str = "sdpa",
        freeze_vision_tower: bool = False,
        gradient_checkpointing: bool = False,
        local_files_only: bool = False,
        logprobs: Literal["shared_prefix", "padded"] = "shared_prefix",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        adapter: LoRA | None = None,
        quantization: Quantization = "none",
    ) -> None:
        if logprobs == "shared_prefix" and attn_implementation not in PREFIX_KERNELS:
            raise UserError(
                f"policy.logprobs: shared_prefix works with attn_implementation {', '.join(PREFIX_KERNELS)}, not "
                f"{attn_implementation!r}; set policy.logprobs to padded"
            )
        self.path = path
        self.dtype = dtype
        self.attn_implementation = attn_implementation
        self.freeze_vision_tower = freeze_vision_tower
        self.gradient_checkpointing = gradient_checkpointing
        self.local_files_only = local_files_only
        self.logprobs = logprobs
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels
        self.adapter = adapter
        self.quantization: Quantization = quantization

    def setup(self) -> None:
        from transformers import AutoProcessor

        require_checkpoint(self.path)
        check_family(self.path, type(self), self.local_files_only)
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        with clear_errors(self.path):
            self.processor: Any = AutoProcessor.from_pretrained(
                self.path,
                local_files_only=self.local_files_only,
                **{name: limit for name, limit in limits.items() if limit is not None},
            )

    def load_model(self) -> nn.Module:
        return self.prepare(self._load(self.quantization))

    def repetition_penalty(self) -> float:
        from transformers import GenerationConfig

        if Path(self.path).is_dir() and not (Path(self.path) / "generation_config.json").exists():
            return 1.0
        with clear_errors(self.path):
            config = GenerationConfig.from_pretrained(self.path, local_files_only=self.local_files_only)
        return float(config.repetition_penalty or 1.0)

    def load_quantized(self, quantization: Literal["nf4", "int8"]) -> nn.Module:
        return self.prepare(self._load(quantization))

    def _load(self, quantization: Quantization) -> Any:
        """The transformers model as it is on disk."""
        from transformers import AutoModelForImageTextToText

        require_checkpoint(self.path)
        dtype = getattr(torch, self.dtype)
        options = {"quantization_config": config} if (config := quantization_config(quantization, dtype)) else {}
        with clear_errors(self.path):
            return AutoModelForImageTextToText.from_pretrained(
                self.path,
                dtype=dtype,
                attn_implementation=self.attn_implementation,
                local_files_only=self.local_files_only,
                **options,
            )

    def prepare(self, model: Any) -> nn.Module:
        """Makes a transformers model ready: what is trained, how attention is computed, what backward keeps."""
        model.train()
        use_segments(model)
        use_one_kernel(model)
        if is_quantized(model):
            model.requires_grad_(False)
        if self.adapter is not None:
            add_adapter(model, self.adapter, self.path)
        if self.freeze_vision_tower:
            model.model.visual.requires_grad_(False)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trained: nn.Module = model
        return trained

    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
        features = self.processor(text=[self.prompt_text(p) for p in prompts], images=[[p.image] for p in prompts])
        grids = torch.as_tensor(features["image_grid_thw"])
        patches = torch.as_tensor(features["pixel_values"]).split(grids.prod(dim=1).tolist())
        patch = self.processor.image_processor.patch_size
        for prompt, (_, height, width) in zip(prompts, grids.tolist(), strict=True):
            if (seen := (width * patch, height * patch)) != prompt.image.size:
                raise UserError(
                    f"sample {prompt.sample.id!r}: the image is {prompt.image.size} but the processor would make it "
                    f"{seen}, so coordinates would not fit; set data.image_size to a size that it keeps"
                )
        return [
            EncodedPrompt(torch.as_tensor(token_ids), pixels, grid[None])
            for token_ids, pixels, grid in zip(features["input_ids"], patches, grids, strict=True)
        ]

    def score(
        self,
        model: Any,
        prompts: Sequence[EncodedPrompt],
        completions: Sequence[Tensor],
        prompt_index: Sequence[int],
        with_entropy: bool = False,
    ) -> TokenScores:
        compute = packed_hidden if self.shares_prefix else padded_hidden
        hidden = compute(model.model, prompts, completions, prompt_index)
        token_ids = torch.cat(list(completions)).to(hidden.device)
        logprobs, entropy = selected_logprobs(hidden, model.lm_head, token_ids, with_entropy=with_entropy)
        lengths = [len(c) for c in completions]
        padded = pad_sequence(logprobs.split(lengths), batch_first=True)
        return TokenScores(padded, None if entropy is None else pad_sequence(entropy.split(lengths), batch_first=True))

    @property
    def shares_prefix(self) -> bool:
        return self.logprobs == "shared_prefix"

    @torch.no_grad()
    def share_images(self, model: Any, prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
        if not tower_is_frozen(model.model):
            return list(prompts)
        features = vision_features(model.model, prompts)
        return [replace(prompt, features=found) for prompt, found in zip(prompts, features, strict=True)]

    def prefill(self, model: Any, prompts: Sequence[EncodedPrompt], cache: Any) -> Prefill:
        nothing = torch.zeros(0, dtype=torch.int64)
        rows = padded_rows(model.model, prompts, [nothing] * len(prompts), range(len(prompts)))
        hidden = model.model(**rows, past_key_values=cache, use_cache=True).last_hidden_state
        lengths = rows["attention_mask"].sum(dim=1)
        last = hidden[torch.arange(len(prompts), device=hidden.device), lengths - 1]
        positions = rows["position_ids"].amax(dim=(0, 2)) + 1
        return Prefill(model.lm_head(last).float(), lengths, positions)

    def decode(self, model: Any, token_ids: Tensor, positions: Tensor, cache: Any, visible: Tensor) -> Tensor:
        outputs = model.model(
            input_ids=token_ids,
            position_ids=positions.expand(3, -1, -1),
            attention_mask=attention_mask(model.model, visible),
            past_key_values=cache,
            use_cache=True,
        )
        return model.lm_head(outputs.last_hidden_state).float()

    def sync_weights(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        self._require_agreement()
        return super().sync_weights(model)

    def _require_agreement(self) -> None:
        """Refuses other engines where they would compute other numbers than the policy, whatever weights they have."""
        if self.quantization == "int8":
            raise UserError(
                "model.policy.quantization int8 also rounds activations, so that no engine with weights of its own can "
                "agree with the policy; use nf4, or HFEngine for rollouts"
            )

    def describe_model(self, model: nn.Module, folder: Path) -> None:
        self._require_agreement()
        super().describe_model(model, folder)

    @property
    def forbidden_token_ids(self) -> tuple[int, ...]:
        names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
        return tuple(self.processor.tokenizer.convert_tokens_to_ids(list(names)))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        tokenizer = self.processor.tokenizer
        return tuple(dict.fromkeys([tokenizer.eos_token_id, tokenizer.pad_token_id]))
