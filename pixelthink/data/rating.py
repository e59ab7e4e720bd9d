"""Difficulty ratings by a vision-language model on a server: the question and the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pixelthink.data.asking import SampleQuestion
from pixelthink.data.validation import MAX_DIFFICULTY, MIN_DIFFICULTY, check_difficulty
from pixelthink.judges.chat import ChatOptions, image_part
from pixelthink.types import Sample

RATINGS = ("scene", "seg", "language")
"""Scene complexity, segmentation challenge and linguistic ambiguity, as the paper's rater gives them."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        name: {"type": "integer", "minimum": int(MIN_DIFFICULTY), "maximum": int(MAX_DIFFICULTY)} for name in RATINGS
    },
    "required": list(RATINGS),
    "additionalProperties": False,
}

Aggregate = Literal["mean", "max", "median"]

_INSTRUCTIONS = (
    "You rate how difficult a referring segmentation question is. Look at the image and at the question, and give "
    "three whole numbers from 1 (trivial) to 10 (extremely difficult): scene, the complexity of the scene (clutter, "
    "number of objects, occlusion); seg, the challenge of segmenting what is asked for (small, thin, blurred or hidden "
    "objects); language, the ambiguity of the question and the reasoning that it takes. "
    'Answer with JSON only, e.g. {"scene": 4, "seg": 6, "language": 3}.'
)


def rating_messages(sample: Sample, image_side: int = 1024) -> list[dict[str, Any]]:
    """Chat messages in the OpenAI format: the image, the question, and the mask's proportion and position in words.

    The longer side of the image is shrunk to `image_side` pixels.
    """
    text = f"Question: {sample.question}\n{describe_mask(sample)}"
    content = [image_part(sample.image, image_side), {"type": "text", "text": text}]
    return [{"role": "system", "content": _INSTRUCTIONS}, {"role": "user", "content": content}]


def describe_mask(sample: Sample) -> str:
    """Proportion and position of the mask in words; says so where the mask is empty or unknown."""
    if sample.mask is None:
        return "Where the object is has not been annotated."
    if not sample.mask.any():
        return "Nothing in the image fits the question."
    ys, xs = np.nonzero(sample.mask)
    height, width = sample.mask.shape
    column = ("left", "centre", "right")[min(int(3 * xs.mean() / width), 2)]
    row = ("top", "middle", "bottom")[min(int(3 * ys.mean() / height), 2)]
    left, top, right, bottom = (
        round(100 * float(value), 1)
        for value in (xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height)
    )
    several = f" It consists of {len(sample.targets)} objects." if len(sample.targets) > 1 else ""
    return (
        f"The correct mask covers {100 * sample.mask.mean():.2f} % of the image, lies at the {row} {column}, and "
        f"reaches from {left} % to {right} % of the width and from {top} % to {bottom} % of the height.{several}"
    )


def parse_rating(text: str) -> dict[str, float]:
    """The three ratings of an answer.

    Raises:
        ValueError: not a JSON object with exactly the three, each a number from 1 to 10.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"the rater's answer is not JSON: {text[:60]!r}") from None
    if not isinstance(value, Mapping) or set(value) != set(RATINGS):
        raise ValueError(f"the rater's answer does not hold exactly {', '.join(RATINGS)}: {text[:60]!r}")
    return {name: check_difficulty(value[name], f"the rater's {name}") for name in RATINGS}


def aggregate_rating(parts: Mapping[str, float], how: Aggregate = "mean") -> float:
    """One difficulty from several ratings; how the paper does it is not published."""
    values = np.array(list(parts.values()))
    if how == "max":
        return float(values.max())
    return float(values.mean() if how == "mean" else np.median(values))


@dataclass(frozen=True)
class RaterOptions(ChatOptions):
    """The server and how it is asked.

    Attributes:
        image_side: Longer images are shrunk to this side.
    """

    image_side: int = 1024


def rating_question(image_side: int = 1024) -> SampleQuestion[dict[str, float]]:
    """Asks for the three ratings, with the image shrunk to `image_side`."""
    return SampleQuestion("rating", SCHEMA, lambda sample: rating_messages(sample, image_side), parse_rating)
