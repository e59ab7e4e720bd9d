"""The policy swap point: how one family of multimodal models is loaded, prompted and scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pixelthink.errors import UserError
from pixelthink.geometry import AnswerConvention
from pixelthink.policies import adapters
from pixelthink.policies.adapters import LoRA
from pixelthink.policies.plain import plain_config, plain_model
from pixelthink.types import Prompt


@dataclass(frozen=True)
class VisionFeatures:
    """Outputs of the vision tower for a prompt's images.

    Attributes:
        images: Features of all image tokens in order, (tokens, D).
        deepstack: What is added to the first text layers (Qwen3-VL), each (tokens, D); empty for other families.
    """

    images: Tensor
    deepstack: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as one family's forward takes it.

    Attributes:
        token_ids: Chat-templated prompt with expanded image placeholders, int64 (L,).
        pixel_values: Image patches as the family's image processor makes them.
        image_grid: Patch grid (time, height, width) per image, int64 (images, 3).
        features: Outputs of a frozen vision tower, see `PolicyBackbone.share_images`; None: each forward computes them.
    """

    token_ids: Tensor
    pixel_values: Tensor
    image_grid: Tensor
    features: VisionFeatures | None = None


@dataclass(frozen=True)
class TokenScores:
    """Scores of N completions, right-padded to T tokens with zeros.

    Attributes:
        logprobs: Log-probability of each completion token at temperature 1, float32 (N, T).
        entropy: Entropy of the distribution it came from in nats, float32 (N, T), or None where not asked for.
    """

    logprobs: Tensor
    entropy: Tensor | None


@dataclass(frozen=True)
class Prefill:
    """Result of the forward pass over prompts, from which decoding goes on.

    Attributes:
        logits: Of each prompt's next token, float32 (P, V).
        lengths: Tokens of each prompt, int64 (P,); the rows of the key-value cache are padded on the right.
        positions: Rotary position of each prompt's next token, int64 (P,).
    """

    logits: Tensor
    lengths: Tensor
    positions: Tensor


class PolicyBackbone(ABC):
    """Knows one model family. Holds no weights: `load_model` returns them and every other method is handed them."""

    convention: AnswerConvention
    """How the family writes coordinates: absolute pixels of the image that it sees, or thousandths of its sides."""

    model_type: str = ""
    """The family's `model_type` in a checkpoint's `config.json`."""

    adapter: LoRA | None = None
    """The low-rank adapter that is trained; None where the weights themselves are."""

    processor: Any
    """Tokenizer and image processor (a transformers processor), there after `setup`."""

    @abstractmethod
    def setup(self) -> None:
        """Loads the processor.

        Raises:
            MissingFileError: if there is no checkpoint at the path; one line that names it.
        """

    @abstractmethod
    def load_model(self) -> nn.Module:
        """The model with its weights, in training mode, on the CPU."""

    def load_quantized(self, quantization: Literal["nf4", "int8"]) -> nn.Module:
        """The weights of `load_model`, its language part in 4 or 8 bits: for a reference, not to be trained.

        Raises:
            UserError: the family cannot be quantised; one line.
        """
        raise UserError(f"{type(self).__name__} cannot be loaded in {quantization}")

    def repetition_penalty(self) -> float:
        """The penalty that the checkpoint's generation settings ask for, 1 where they ask for none."""
        return 1.0

    def prompt_text(self, prompt: Prompt) -> str:
        """The chat-templated prompt up to where the model goes on, one unexpanded placeholder per image."""
        template = self.processor.apply_chat_template
        chat = template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
        return str(chat) + prompt.response_start

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
        """Token ids and image patches of each prompt.

        Raises:
            UserError: if the processor would resize an image, so that the prompt's frame would be wrong.
        """

    def encode_text(self, prompt: Prompt) -> EncodedPrompt:
        """Token ids of a prompt whose messages have no image."""
        token_ids = torch.as_tensor(self.processor.tokenizer(self.prompt_text(prompt))["input_ids"])
        return EncodedPrompt(token_ids, torch.zeros(0, 1), torch.zeros(0, 3, dtype=torch.int64))

    @abstractmethod
    def score(
        self,
        model: nn.Module,
        prompts: Sequence[EncodedPrompt],
        completions: Sequence[Tensor],
        prompt_index: Sequence[int],
        with_entropy: bool = False,
    ) -> TokenScores:
        """Log-probabilities of completions, each after its own prompt.

        Args:
            model: What `load_model` gave.
            prompts: P prompts; each image is encoded once.
            completions: N token id vectors, int64 (length,).
            prompt_index: Which prompt each completion follows, N numbers below P.
            with_entropy: Also compute entropies.
        """

    @property
    def shares_prefix(self) -> bool:
        """Whether `score` computes a prompt once for all its completions, or once for each."""
        return False

    def share_images(self, model: nn.Module, prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
        """The prompts with their vision features, where these stay the same all step long; else as they are.

        So policy, reference, minibatches and micro-batches share one pass of the tower per image. That is right where
        the tower is frozen and the reference started from the same weights; where it is trained, nothing changes.
        """
        return list(prompts)

    def prefill(self, model: nn.Module, prompts: Sequence[EncodedPrompt], cache: Any) -> Prefill:
        """Reads prompts once, each a row of the cache.

        Args:
            model: What `load_model` gave.
            prompts: P prompts.
            cache: An empty key-value cache; transformers' `Cache.update` is what it needs.

        Raises:
            NotImplementedError: if the family cannot sample through transformers.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot sample with HFEngine")

    def decode(self, model: nn.Module, token_ids: Tensor, positions: Tensor, cache: Any, visible: Tensor) -> Tensor:
        """Logits of the next token after each of Q new tokens in each row of the cache, float32 (P, Q, V).

        Args:
            model: What `load_model` gave.
            token_ids: int64 (P, Q).
            positions: Their rotary positions, int64 (P, Q).
            cache: The cache of `prefill`; gets Q more columns.
            visible: Which columns of the cache, the new ones included, each token sees, bool (P, Q, columns).

        Raises:
            NotImplementedError: if the family cannot sample through transformers.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot sample with HFEngine")

    @property
    @abstractmethod
    def forbidden_token_ids(self) -> tuple[int, ...]:
        """Tokens that may never be sampled, since a later forward would take them for images or videos."""

    @property
    @abstractmethod
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion."""

    def sync_weights(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Every weight that an engine of its own needs, under the name that the transformers class gives it.

        One whole tensor lives at a time: a sharded one is gathered, which every process must take part in, so that all
        consume the iterator to its end. Tied weights come once. Adapters are merged and quantised layers unpacked, so
        that vLLM's loaders and `from_pretrained` both know the names.

        Args:
            model: What `load_model` gave, wrapped by a strategy or not.
        """
        return adapters.base_weights(model)

    def base_weights(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """As `sync_weights`, without the adapter's part."""
        return adapters.base_weights(model, merged=False)

    def describe_model(self, model: nn.Module, folder: Path) -> None:
        """Writes what another engine needs to build the model without weights: configuration and processor.

        Args:
            model: What `load_model` gave; its `config` is written.
            folder: An existing, empty folder.
        """
        plain_config(model).save_pretrained(folder)
        self.processor.save_pretrained(folder)

    @property
    def adapter_rank(self) -> int:
        """Rank of the low-rank adapter that is trained; 0 where the weights themselves are."""
        return 0 if self.adapter is None else self.adapter.rank

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        """Names of the layers that the adapter is in, without what stands before the last dot."""
        return () if self.adapter is None else tuple(self.adapter.target_modules)

    def write_adapter(self, model: nn.Module, folder: Path) -> None:
        """Writes the adapter alone, in peft's format; gathers sharded weights, so that every process has to call it.

        Args:
            model: What `load_model` gave.
            folder: An existing folder.

        Raises:
            UserError: the policy has no adapter; one line.
        """
        if self.adapter is None:
            raise UserError("there is no adapter to write: model.policy.adapter is not set")
        adapters.write_adapter(model, folder)

    def checkpointed(self, model: nn.Module) -> set[str]:
        """Names of the weights that a checkpoint has to hold: the adapter's, or all where there is none."""
        return {n for n in model.state_dict() if self.adapter is None or adapters.is_adapter_weight(n)}

    def save(self, model: nn.Module, folder: Path, what: Literal["model", "adapter"] = "model") -> None:
        """Writes weights, configuration and processor in Hugging Face format.

        Args:
            model: What `load_model` gave.
            folder: An existing, empty folder.
            what: "model" is a whole model, adapters merged and weights unpacked; "adapter" the adapter alone, in peft's
                format.

        Raises:
            UserError: the policy has no adapter to write; one line.
        """
        if what == "adapter":
            self.write_adapter(model, folder)
        else:
            plain_model(model).save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a piece of text."""
        return len(self.processor.tokenizer.encode(text, add_special_tokens=False))
