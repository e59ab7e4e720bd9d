"""Asking a large vision-language model how difficult a question is: what it is shown, and what it may answer."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from PIL import Image

from pixelthink.data.checks import MAX_DIFFICULTY, MIN_DIFFICULTY, check_difficulty
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

    Args:
        sample: What to rate.
        image_side: Longer images are shrunk to this side.
    """
    text = f"Question: {sample.question}\n{describe_mask(sample)}"
    url = "data:image/jpeg;base64," + base64.b64encode(_jpeg(sample.image, image_side)).decode("ascii")
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return [{"role": "system", "content": _INSTRUCTIONS}, {"role": "user", "content": content}]


def describe_mask(sample: Sample) -> str:
    """Proportion and position of what is asked for, in words; says so where there is nothing, or nothing known."""
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
    """One difficulty of several ratings. How the paper does it is not published; the mean is the obvious choice."""
    values = np.array(list(parts.values()))
    if how == "max":
        return float(values.max())
    return float(values.mean() if how == "mean" else np.median(values))


def _jpeg(image: Image.Image, side: int) -> bytes:
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()
