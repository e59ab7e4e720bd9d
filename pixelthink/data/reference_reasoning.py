"""Short and long reference reasoning by a vision-language model on a server: the question and the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixelthink.data.asking import SampleQuestion
from pixelthink.data.rating import describe_mask
from pixelthink.errors import UserError
from pixelthink.judges.chat import ChatOptions, image_part
from pixelthink.types import Sample

STYLES = ("short", "long")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {style: {"type": "string", "minLength": 1} for style in STYLES},
    "required": list(STYLES),
    "additionalProperties": False,
}


@dataclass(frozen=True)
class ReasoningOptions(ChatOptions):
    """The server and how it is asked.

    Attributes:
        max_tokens: Limit of an answer's length.
        image_side: Longer images are shrunk to this side.
        short_words: Words that the short reasoning is asked to stay within.
        long_words: Words that the long reasoning is asked to have, about.
    """

    max_tokens: int = 600
    image_side: int = 1024
    short_words: int = 30
    long_words: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.short_words < self.long_words:
            raise UserError("short_words must be at least 1 and less than long_words")


def reasoning_question(options: ReasoningOptions) -> SampleQuestion[dict[str, str]]:
    """Asks for both; the paper publishes neither its wording nor its lengths."""
    instructions = (
        "You write reference reasoning for referring segmentation. You see an image, a question about an object in it, "
        "and where the correct object is. Write the reasoning that leads from image and question to that object, as "
        f"someone would who does not know the answer yet, twice: short, at most {options.short_words} words, only what "
        f"tells the object from the others; long, about {options.long_words} words, step by step: the scene, the "
        "candidates, why each is or is not meant, the conclusion. Write plain sentences without coordinates or "
        'percentages. Answer with JSON only: {"short": "…", "long": "…"}.'
    )

    def messages(sample: Sample) -> list[dict[str, Any]]:
        text = f"Question: {sample.question}\n{describe_mask(sample)}"
        content = [image_part(sample.image, options.image_side), {"type": "text", "text": text}]
        return [{"role": "system", "content": instructions}, {"role": "user", "content": content}]

    return SampleQuestion("reasoning", SCHEMA, messages, parse_reasoning)


def parse_reasoning(text: str) -> dict[str, str]:
    """Short and long reasoning of an answer.

    Raises:
        ValueError: not a JSON object with exactly the two, both text, the short one the one with fewer words.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"the answer is not JSON: {text[:60]!r}") from None
    if not isinstance(value, Mapping) or set(value) != set(STYLES):
        raise ValueError(f"the answer does not hold exactly {' and '.join(STYLES)}: {text[:60]!r}")
    for style in STYLES:
        if not isinstance(value[style], str) or not value[style].strip():
            raise ValueError(f"the {style} reasoning is empty or no text")
    short, long = (value[style].strip() for style in STYLES)
    if len(short.split()) >= len(long.split()):
        raise ValueError(f"the short reasoning has {len(short.split())} words, the long one {len(long.split())}")
    return {"short": short, "long": long}
