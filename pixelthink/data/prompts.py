"""Prompt styles: a question in, chat messages out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

SYSTEM_PROMPT = "You are a helpful assistant."


class PromptStyle(ABC):
    """Words a question the way a model was, or shall be, trained to read it."""

    answer_style: str = "single"
    """Style of the answers it asks for, see `pixelthink.parsing.parse_completion`."""

    system: str = SYSTEM_PROMPT
    """System message; empty for none."""

    @abstractmethod
    def text(self, question: str) -> str:
        """The user's text, which follows the image."""

    def messages(self, question: str) -> Sequence[Mapping[str, Any]]:
        """Chat messages in the transformers format, with one image placeholder before the text."""
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self.text(question)}]}
        if not self.system:
            return (user,)
        return ({"role": "system", "content": self.system}, user)


class PixelThinkPrompt(PromptStyle):
    """The released single-object prompt to the letter (FACTS section 1).

    Args:
        suffix: Appended as it is, e.g. " Be brief." for the brief baseline.
    """

    def __init__(self, suffix: str = "") -> None:
        self.suffix = suffix

    def text(self, question: str) -> str:
        question = question.lower().strip(".")
        return (
            f"Please find '{question}' with bbox and points."
            "Compare the difference between objects and find the most closely matched one."
            "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
            "Output the one bbox and points of two largest inscribed circles inside the interested object in JSON "
            "format.i.e., <think> thinking process here </think><answer>{'bbox': [10,100,200,210], "
            f"'points_1': [30,110], 'points_2': [35,180]}}</answer>{self.suffix}"
        )


class FixedPrompt(PromptStyle):
    """The same words whatever the question, without a system message, e.g. to ask for a caption.

    Args:
        words: The text.
    """

    system = ""

    def __init__(self, words: str) -> None:
        self.words = words

    def text(self, question: str) -> str:
        return self.words


class ShortPrompt(PromptStyle):
    """`find {question}.` without instructions or a system message, for policies that know the format (the tiny one).

    Args:
        suffix: Appended as it is, e.g. " be brief." for the brief baseline.
    """

    system = ""

    def __init__(self, suffix: str = "") -> None:
        self.suffix = suffix

    def text(self, question: str) -> str:
        return f"find {question.lower().strip('.')}.{self.suffix}"
