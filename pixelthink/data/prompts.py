"""Prompt styles: a question in, chat messages out."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pixelthink.errors import UserError
from pixelthink.types import TokenTarget

SYSTEM_PROMPT = "You are a helpful assistant."

TargetRule = Literal["exact", "max", "either"]


@dataclass(frozen=True)
class TokenTargets:
    """How many tokens each prompt asks for, as L1 does it (`scripts/data/deepscaler_dataset.py` of cmu-l3/l1).

    Attributes:
        rule: "exact" asks "Think for N tokens.", "max" asks "Think for maximum N tokens.", "either" asks half of the
            samples for one and half for the other, as L1-Max is trained.
        tokens: N of every prompt; None draws one for each sample, uniformly between `fewest` and `most`.
        fewest: Least number drawn.
        most: Largest number drawn.
        seed: Of the drawing. What a sample draws is a function of the seed and its id alone: the same in every epoch,
            as in L1's prepared data, after a resume, and on any number of processes.
    """

    rule: TargetRule = "exact"
    tokens: int | None = None
    fewest: int = 100
    most: int = 4000
    seed: int = 42

    def __post_init__(self) -> None:
        if self.rule not in get_args(TargetRule):
            raise UserError(f"data.prompt.target.rule: unknown {self.rule!r}; known: {', '.join(get_args(TargetRule))}")
        if not 0 < self.fewest <= self.most or (self.tokens is not None and self.tokens < 1):
            raise UserError("data.prompt.target: tokens must be at least 1, and 0 < fewest <= most")

    def of(self, sample_id: str) -> TokenTarget:
        """What the prompt of a sample asks for."""
        drawn = random.Random(f"{self.seed} {sample_id}")
        tokens = drawn.randint(self.fewest, self.most)
        at_most = self.rule == "max" or (self.rule == "either" and drawn.random() < 0.5)
        return TokenTarget(self.tokens or tokens, at_most)


def asking(target: TokenTarget) -> str:
    """L1's words for a number of tokens."""
    return f"Think for {'maximum ' if target.at_most else ''}{target.tokens} tokens."


class PromptStyle(ABC):
    """Words a question the way the model is trained to read it."""

    answer_style: str = "single"
    """Style of the answers it asks for, see `pixelthink.parsing.parse_completion`."""

    system: str | None = SYSTEM_PROMPT
    """System message; None or empty for none. (A chat template may then put one of its own, as Qwen2.5-VL's does.)"""

    target: TokenTargets | None = None
    """How many tokens to ask for; None asks for none."""

    @abstractmethod
    def text(self, question: str) -> str:
        """The user's text, which follows the image."""

    def token_target(self, sample_id: str) -> TokenTarget | None:
        """How many tokens the prompt of this sample asks for; None where it asks for none."""
        return None if self.target is None else self.target.of(sample_id)

    def messages(self, question: str, asked: TokenTarget | None = None) -> Sequence[Mapping[str, Any]]:
        """Chat messages in the transformers format, with one image placeholder before the text.

        Args:
            question: As a person would ask it.
            asked: How many tokens to ask for, after all other text.
        """
        text = self.text(question) if asked is None else f"{self.text(question)} {asking(asked)}"
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        return ({"role": "system", "content": self.system}, user) if self.system else (user,)


class PixelThinkPrompt(PromptStyle):
    """The released single-object prompt to the letter (arXiv 2505.23727 and its code, `verl/utils/rl_dataset.py`).

    Args:
        suffix: Appended as it is, e.g. " Be brief." for the brief baseline.
        system: System message; null for none.
        target: How many tokens to ask for; null asks for none.
    """

    def __init__(
        self, suffix: str = "", system: str | None = SYSTEM_PROMPT, target: TokenTargets | None = None
    ) -> None:
        self.suffix = suffix
        self.system = system
        self.target = target

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

    system = None

    def __init__(self, words: str) -> None:
        self.words = words

    def text(self, question: str) -> str:
        return self.words


class NoThinkingPrompt(PromptStyle):
    """The released prompt without its thinking process.

    Answers can be segmented, but never match the format `<think>…</think><answer>…</answer>`: for evaluation, or for
    rewards without the term `think_format`.

    Args:
        suffix: Appended as it is.
        system: System message; null for none.
    """

    def __init__(self, suffix: str = "", system: str | None = SYSTEM_PROMPT) -> None:
        self.suffix = suffix
        self.system = system

    def text(self, question: str) -> str:
        question = question.lower().strip(".")
        return (
            f"Please find '{question}' with bbox and points."
            "Compare the difference between objects and find the most closely matched one."
            "Output the final answer in <answer> </answer> tags, without any thinking process."
            "Output the one bbox and points of two largest inscribed circles inside the interested object in JSON "
            "format.i.e., <answer>{'bbox': [10,100,200,210], 'points_1': [30,110], 'points_2': [35,180]}</answer>"
            f"{self.suffix}"
        )


class VisionReasonerPrompt(PromptStyle):
    """VisionReasoner's released multi-object prompt (arXiv 2505.12081, table 12 and its code).

    Its training puts a newline between image and text and takes full stops off the question; its evaluation puts none
    and takes off `."?!` (`verl/utils/rl_dataset.py`, `evaluation_scripts/evaluation_visionreasoner.py` of Seg-Zero).

    Args:
        no_target: Also says that `[]` is the answer where nothing fits; the released text does not.
        suffix: Appended as it is, e.g. " Be brief." for the brief baseline.
        newline: Begin with a newline after the image, as the released training does.
        strip: Characters taken off both ends of the question.
        system: System message; null for none.
        target: How many tokens to ask for; null asks for none.
    """

    answer_style = "visionreasoner"

    def __init__(
        self,
        no_target: bool = False,
        suffix: str = "",
        newline: bool = False,
        strip: str = ".",
        system: str | None = SYSTEM_PROMPT,
        target: TokenTargets | None = None,
    ) -> None:
        self.no_target = no_target
        self.suffix = suffix
        self.newline = newline
        self.strip = strip
        self.system = system
        self.target = target

    def text(self, question: str) -> str:
        question = question.lower().strip(self.strip)
        newline = "\n" if self.newline else ""
        none = "If nothing in the image matches, output <answer>[]</answer>." if self.no_target else ""
        return (
            f'{newline}Please find "{question}" with bboxs and points.'
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
        target: How many tokens to ask for; null asks for none.
    """

    system = None

    def __init__(self, suffix: str = "", target: TokenTargets | None = None) -> None:
        self.suffix = suffix
        self.target = target

    def text(self, question: str) -> str:
        return f"find {question.lower().strip('.')}.{self.suffix}"
