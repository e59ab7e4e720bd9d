"""Prompt styles: a question in, chat messages out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

SYSTEM_PROMPT = "You are a helpful assistant."


class PromptStyle(ABC):
    """Words a question the way the model is trained to read it."""

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
    """The released single-object prompt to the letter (arXiv 2505.23727 and its code).

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
    """The same words for every question, without a system message, e.g. to ask for a caption.

    Args:
        words: The text.
    """

    system = ""

    def __init__(self, words: str) -> None:
        self.words = words

    def text(self, question: str) -> str:
        return self.words


class BriefPrompt(PixelThinkPrompt):
    """The released prompt with a request to be brief, as the papers' prompting baseline (their wording is not public).

    Args:
        suffix: The request.
    """

    def __init__(self, suffix: str = " Be brief: keep the thinking process to one short sentence.") -> None:
        super().__init__(suffix)


class NoThinkingPrompt(PromptStyle):
    """The released prompt without its thinking process.

    Answers can be segmented, but never match the format `<think>…</think><answer>…</answer>`: for evaluation, or for
    rewards without the term `think_format`.
    """

    def text(self, question: str) -> str:
        question = question.lower().strip(".")
        return (
            f"Please find '{question}' with bbox and points."
            "Compare the difference between objects and find the most closely matched one."
            "Output the final answer in <answer> </answer> tags, without any thinking process."
            "Output the one bbox and points of two largest inscribed circles inside the interested object in JSON "
            "format.i.e., <answer>{'bbox': [10,100,200,210], 'points_1': [30,110], 'points_2': [35,180]}</answer>"
        )


class VisionReasonerPrompt(PromptStyle):
    """VisionReasoner's released multi-object prompt to the letter (arXiv 2505.12081, table 12 and its code).

    Args:
        no_target: Also says that `[]` is the answer where nothing fits; the released text does not.
        suffix: Appended as it is, e.g. " Be brief." for the brief baseline.
    """

    answer_style = "visionreasoner"

    def __init__(self, no_target: bool = False, suffix: str = "") -> None:
        self.no_target = no_target
        self.suffix = suffix

    def text(self, question: str) -> str:
        question = question.lower().strip(".")
        none = "If nothing in the image matches, output <answer>[]</answer>." if self.no_target else ""
        return (
            f'Please find "{question}" with bboxs and points.'
            "Compare the difference between object(s) and find the most closely matched object(s)."
            "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
            f"Output the bbox(es) and point(s) inside the interested object(s) in JSON format.{none}"
            'i.e., <think> thinking process here </think><answer>[{"bbox_2d": [10,100,200,210], '
            '"point_2d": [30,110]}, {"bbox_2d": [225,296,706,786], "point_2d": [302,410]}]</answer>'
            f"{self.suffix}"
        )


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
