"""The policy swap point: how one family of multimodal models is loaded, prompted and scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pixelthink.geometry import AnswerConvention
from pixelthink.types import Prompt


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as one family's forward takes it.

    Attributes:
        token_ids: Chat-templated prompt with expanded image placeholders, int64 (L,).
        pixel_values: Image patches as the family's image processor makes them.
        image_grid: Patch grid (time, height, width) per image, int64 (images, 3).
    """

    token_ids: Tensor
    pixel_values: Tensor
    image_grid: Tensor


@dataclass(frozen=True)
class TokenScores:
    """Scores of N completions, right-padded to T tokens with zeros.

    Attributes:
        logprobs: Log-probability of each completion token at temperature 1, float32 (N, T).
        entropy: Entropy of the distribution it came from in nats, float32 (N, T), or None where not asked for.
    """

    logprobs: Tensor
    entropy: Tensor | None


class PolicyBackbone(ABC):
    """Knows one model family. Holds no weights: `load_model` returns them and every other method is handed them."""

    convention: AnswerConvention
    """How the family writes coordinates: absolute pixels of the image that it sees, or thousandths of its sides."""

    processor: Any
    """Tokenizer and image processor (a transformers processor), there after `setup`."""

    @abstractmethod
    def setup(self) -> None:
        """Loads the processor.

        Raises:
            FileNotFoundError: if there is no checkpoint at the path; one line that names it.
        """

    @abstractmethod
    def load_model(self) -> nn.Module:
        """The model with its weights, in training mode, on the CPU."""

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
        """Token ids and image patches of each prompt.

        Raises:
            ValueError: if the processor would resize an image, so that the prompt's frame would be wrong.
        """

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
    @abstractmethod
    def forbidden_token_ids(self) -> tuple[int, ...]:
        """Tokens that may never be sampled, since a later forward would take them for images or videos."""

    @property
    @abstractmethod
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion."""

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a piece of text."""
        return len(self.processor.tokenizer.encode(text, add_special_tokens=False))
