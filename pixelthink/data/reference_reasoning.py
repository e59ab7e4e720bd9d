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
        short_words: Words that the short reasoning is asked to stay within; above twice as many it is refused.
        long_words: Words that the long reasoning is asked to have, about; below half and above twice as many it is
            refused.
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
        f"tells the object from the others; long, about {options.long_words} words, never below half or above twice as "
        "many, step by step: the scene, the candidates, why each is or is not meant, the conclusion. Write plain "
        'sentences without coordinates or percentages. Answer with JSON only: {"short": "…", "long": "…"}.'
    )

    def messages(sample: Sample) -> list[dict[str, Any]]:
        text = f"Question: {sample.question}\n{describe_mask(sample)}"
        content = [image_part(sample.image, options.image_side), {"type": "text", "text": text}]
        return [{"role": "system", "content": instructions}, {"role": "user", "content": content}]

    return SampleQuestion("reasoning", SCHEMA, messages, lambda text: parse_reasoning(text, options))


def parse_reasoning(text: str, options: ReasoningOptions | None = None) -> dict[str, str]:
    """Short and long reasoning of an answer.

    Args:
        text: The answer.
        options: With them, lengths that are far from those that were asked for are refused.

    Raises:
        ValueError: not a JSON object with exactly the two, both text, the short one the one with fewer words; or the
            short one has more than twice `short_words`, the long one less than half or more than twice `long_words`.
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
    brief, full = len(short.split()), len(long.split())
    if brief >= full:
        raise ValueError(f"the short reasoning has {brief} words, the long one {full}")
    if options is not None and brief > 2 * options.short_words:
        raise ValueError(f"the short reasoning has {brief} words, more than twice the {options.short_words} asked for")
    if options is not None and not options.long_words / 2 <= full <= 2 * options.long_words:
        raise ValueError(f"the long reasoning has {full} words, far from the {options.long_words} asked for")
    return {"short": short, "long": long}
