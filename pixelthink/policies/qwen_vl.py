"""Qwen2.5-VL policies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pixelthink.geometry import AnswerConvention
from pixelthink.policies.attention import use_segments
from pixelthink.policies.base import EncodedPrompt, PolicyBackbone, Prefill, TokenScores
from pixelthink.policies.logprobs import selected_logprobs
from pixelthink.policies.padded import padded_hidden, padded_rows
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
    """

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
    ) -> None:
        if logprobs == "shared_prefix" and attn_implementation not in PREFIX_KERNELS:
            raise ValueError(
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

    def setup(self) -> None:
        from transformers import AutoProcessor

        self._require_checkpoint()
        with self._clear_errors():
            self.processor: Any = AutoProcessor.from_pretrained(self.path, local_files_only=self.local_files_only)

    def load_model(self) -> nn.Module:
        from transformers import AutoModelForImageTextToText

        self._require_checkpoint()
        with self._clear_errors():
            model = AutoModelForImageTextToText.from_pretrained(
                self.path,
                dtype=getattr(torch, self.dtype),
                attn_implementation=self.attn_implementation,
                local_files_only=self.local_files_only,
            )
        return self._prepare(model)

    def _prepare(self, model: Any) -> nn.Module:
        model.train()
        use_segments(model)
        if self.freeze_vision_tower:
            model.model.visual.requires_grad_(False)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return cast("nn.Module", model)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Turns transformers' page on a model that cannot be loaded into one line that names the option."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            is_folder = Path(self.path).is_dir()
            where = "the folder is incomplete or damaged" if is_folder else "no such folder, nor a model of the hub"
            reason = " ".join(str(error).split())
            raise FileNotFoundError(f"policy.path: cannot load {self.path!r}, {where} ({reason[:160]})") from error

    def _require_checkpoint(self) -> None:
        looks_local = self.path.startswith((".", "/", "~")) or Path(self.path).exists() or self.path.count("/") != 1
        if looks_local and not (Path(self.path) / "config.json").is_file():
            raise FileNotFoundError(f"policy.path: no config.json in {self.path!r}, so there is no model to load")

    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
        template = self.processor.apply_chat_template
        texts = [template(list(p.messages), tokenize=False, add_generation_prompt=True) for p in prompts]
        features = self.processor(text=texts, images=[[p.image] for p in prompts])
        grids = torch.as_tensor(features["image_grid_thw"])
        patches = torch.as_tensor(features["pixel_values"]).split(grids.prod(dim=1).tolist())
        for prompt, grid in zip(prompts, grids.tolist(), strict=True):
            self._check_size(prompt, grid)
        return [
            EncodedPrompt(torch.as_tensor(token_ids), pixels, grid[None])
            for token_ids, pixels, grid in zip(features["input_ids"], patches, grids, strict=True)
        ]

    def _check_size(self, prompt: Prompt, grid: list[int]) -> None:
        """Refuses an image that the processor has resized, since the prompt's frame would then be wrong."""
        patch = self.processor.image_processor.patch_size
        seen = (grid[2] * patch, grid[1] * patch)
        if seen != prompt.image.size:
            raise ValueError(
                f"sample {prompt.sample.id!r}: the image is {prompt.image.size} but the processor would make it "
                f"{seen}, so coordinates would not fit; set data.image_size to a size that it keeps"
            )

    def score(
        self,
        model: nn.Module,
        prompts: Sequence[EncodedPrompt],
        completions: Sequence[Tensor],
        prompt_index: Sequence[int],
        with_entropy: bool = False,
    ) -> TokenScores:
        core = cast("Any", model).model
        compute = packed_hidden if self.shares_prefix else padded_hidden
        hidden = compute(core, prompts, completions, prompt_index)
        token_ids = torch.cat(list(completions)).to(hidden.device)
        head = cast("nn.Module", model.lm_head)
        logprobs, entropy = selected_logprobs(hidden, head, token_ids, with_entropy=with_entropy)
        lengths = [len(c) for c in completions]
        padded = pad_sequence(logprobs.split(lengths), batch_first=True)
        return TokenScores(padded, None if entropy is None else pad_sequence(entropy.split(lengths), batch_first=True))

    @property
    def shares_prefix(self) -> bool:
        return self.logprobs == "shared_prefix"

    @torch.no_grad()
    def share_images(self, model: nn.Module, prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
        core = cast("Any", model).model
        if not tower_is_frozen(core):
            return list(prompts)
        features = vision_features(core, prompts)
        return [replace(prompt, features=found) for prompt, found in zip(prompts, features, strict=True)]

    def prefill(self, model: nn.Module, prompts: Sequence[EncodedPrompt], cache: Any) -> Prefill:
        core = cast("Any", model).model
        nothing = torch.zeros(0, dtype=torch.int64)
        rows = padded_rows(core, prompts, [nothing] * len(prompts), range(len(prompts)))
        hidden = core(**rows, past_key_values=cache, use_cache=True).last_hidden_state
        lengths = rows["attention_mask"].sum(dim=1)
        last = hidden[torch.arange(len(prompts), device=hidden.device), lengths - 1]
        positions = rows["position_ids"].amax(dim=(0, 2)) + 1
        return Prefill(cast("Any", model).lm_head(last).float(), lengths, positions)

    def decode(self, model: nn.Module, token_ids: Tensor, positions: Tensor, cache: Any, visible: Tensor) -> Tensor:
        core = cast("Any", model).model
        outputs = core(
            input_ids=token_ids,
            position_ids=positions.expand(3, -1, -1),
            attention_mask=attention_mask(core, visible),
            past_key_values=cache,
            use_cache=True,
        )
        return cast("Any", model).lm_head(outputs.last_hidden_state).float()

    @property
    def forbidden_token_ids(self) -> tuple[int, ...]:
        names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
        return tuple(self.processor.tokenizer.convert_tokens_to_ids(list(names)))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        tokenizer = self.processor.tokenizer
        return tuple(dict.fromkeys([tokenizer.eos_token_id, tokenizer.pad_token_id]))
