"""Difficulty ratings by a vision-language model on a server: the question, the answer, and a whole source at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pixelthink.data.base import SampleSource
from pixelthink.data.validation import MAX_DIFFICULTY, MIN_DIFFICULTY, check_difficulty, check_sample
from pixelthink.judges.chat import AnswerCache, ChatClient, ChatOptions, ServerError, image_part, question_key
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


class RatingClient(ChatClient):
    """Asks for one rating at a time; may be used by several threads. Arguments as in `ChatClient`."""

    options: RaterOptions

    def rate(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """One rating; retries and raises as `ChatClient.ask` does."""
        return self.ask(messages, SCHEMA, "rating", parse_rating)


class RatingCache(AnswerCache[dict[str, float]]):
    """Ratings by question, in the file `path`."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, "rating", parse_rating)


@dataclass
class Ratings:
    """The ratings of a source.

    Attributes:
        parts: The three ratings by id, in the source's order.
        problems: Why a sample has none, by id (or by `sample N` where it could not even be read).
        stopped: Why the server was not asked any further, or None.
    """

    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None


def rate_source(
    source: SampleSource, client: RatingClient, cache: RatingCache, progress: Callable[[int], object] = lambda n: None
) -> Ratings:
    """Rates every sample of a source that the cache does not know, `client.options.concurrency` at a time.

    The source is set up. New ratings go into the cache, and `progress` is called with 1 after each sample. Where the
    server cannot be reached or refuses, no further sample is begun.
    """
    ratings = Ratings()
    reading = threading.Lock()  # sources are not made for several threads

    def rate(index: int) -> tuple[str, dict[str, float] | Exception] | None:
        """Id and rating of one sample, or why it has none; None once the server has failed."""
        if ratings.stopped is not None:
            return None
        name = f"sample {index}"
        try:
            with reading:
                sample = check_sample(source[index])
            name = sample.id
            messages = rating_messages(sample, client.options.image_side)
            key = question_key(client.options.model, SCHEMA, messages)
            if (rating := cache.get(key)) is None:
                rating = client.rate(messages)
                cache.put(key, name, rating)
        except (ValueError, ServerError) as error:
            if isinstance(error, ServerError):
                ratings.stopped = ratings.stopped or str(error)
            return name, error
        return name, rating

    with ThreadPoolExecutor(client.options.concurrency) as pool:
        for found in pool.map(rate, range(len(source))):
            if found is None:
                continue
            name, result = found
            if isinstance(result, Exception):
                ratings.problems[name] = str(result)
            else:
                ratings.parts[name] = result
            progress(1)
    return ratings
