"""Qwen2.5-VL policies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pixelthink.policies.base import EncodedPrompt, PolicyBackbone, TokenScores
from pixelthink.policies.logprobs import selected_logprobs
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
    """

    convention = "pixels"

    def __init__(
        self,
        path: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
        attn_implementation: str = "sdpa",
        freeze_vision_tower: bool = False,
        gradient_checkpointing: bool = False,
        local_files_only: bool = False,
    ) -> None:
        self.path = path
        self.dtype = dtype
        self.attn_implementation = attn_implementation
        self.freeze_vision_tower = freeze_vision_tower
        self.gradient_checkpointing = gradient_checkpointing
        self.local_files_only = local_files_only

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
        hidden, lengths = self._padded_hidden(model, prompts, completions, prompt_index)
        head = cast("nn.Module", model.lm_head)
        logprobs, entropy = selected_logprobs(hidden, head, torch.cat(list(completions)), with_entropy=with_entropy)
        padded = pad_sequence(logprobs.split(lengths), batch_first=True)
        return TokenScores(padded, None if entropy is None else pad_sequence(entropy.split(lengths), batch_first=True))

    def _padded_hidden(
        self,
        model: nn.Module,
        prompts: Sequence[EncodedPrompt],
        completions: Sequence[Tensor],
        prompt_index: Sequence[int],
    ) -> tuple[Tensor, list[int]]:
        """Hidden states that predict each completion token, (sum of lengths, D), from right-padded rows."""
        core = cast("Any", model).model
        device = next(model.parameters()).device
        rows = [torch.cat([prompts[p].token_ids, c]) for p, c in zip(prompt_index, completions, strict=True)]
        token_ids = pad_sequence(rows, batch_first=True).to(device)
        row_lengths = torch.tensor([len(row) for row in rows], device=device)
        attention_mask = (torch.arange(token_ids.shape[1], device=device) < row_lengths[:, None]).long()
        grids = torch.cat([prompts[p].image_grid for p in prompt_index]).to(device)
        token_types = ((token_ids == core.config.image_token_id) & attention_mask.bool()).int()
        position_ids, _ = core.get_rope_index(
            token_ids, token_types, image_grid_thw=grids, attention_mask=attention_mask
        )
        outputs = core(
            input_ids=token_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            mm_encoder_outputs={"image": self._image_features(core, prompts, prompt_index)},
            use_cache=False,
        )
        lengths = [len(c) for c in completions]
        states = [
            outputs.last_hidden_state[i, len(row) - length - 1 : len(row) - 1]
            for i, (row, length) in enumerate(zip(rows, lengths, strict=True))
        ]
        return torch.cat(states), lengths

    @staticmethod
    def _image_features(core: Any, prompts: Sequence[EncodedPrompt], prompt_index: Sequence[int]) -> Any:
        """One pass of the vision tower per prompt, its features repeated for the rows that share the prompt."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        device = next(core.parameters()).device
        used = sorted(set(prompt_index))
        patches = torch.cat([prompts[p].pixel_values for p in used]).to(device)
        grids = torch.cat([prompts[p].image_grid for p in used]).to(device)
        per_image = iter(core.get_image_features(patches, grids, return_dict=True).pooler_output)
        features = {p: torch.cat([next(per_image) for _ in range(len(prompts[p].image_grid))]) for p in used}
        return BaseModelOutputWithPooling(pooler_output=[features[p] for p in prompt_index])  # type: ignore[arg-type]

    @property
    def forbidden_token_ids(self) -> tuple[int, ...]:
        names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
        return tuple(self.processor.tokenizer.convert_tokens_to_ids(list(names)))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        tokenizer = self.processor.tokenizer
        return tuple(dict.fromkeys([tokenizer.eos_token_id, tokenizer.pad_token_id]))
