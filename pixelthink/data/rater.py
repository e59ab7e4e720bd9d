"""Difficulty ratings by a vision-language model on a server, by many threads, kept as they come in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixelthink.data.base import SampleSource
from pixelthink.data.checks import check_sample
from pixelthink.data.rating import SCHEMA, parse_rating, rating_messages
from pixelthink.judges.chat import AnswerCache, ChatClient, ChatOptions, ServerError, question_key


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
        """One rating, tried again while that may help; raises as `ChatClient.ask` does."""
        return self.ask(messages, SCHEMA, "rating", parse_rating)


class RatingCache(AnswerCache[dict[str, float]]):
    """Ratings by what was asked, on disk.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, "rating", parse_rating)


@dataclass
class Ratings:
    """What came of rating a source.

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
    """Rates every sample of a source that the cache does not know.

    Samples are read as they are needed, so memory does not grow with the source. Where the server cannot be reached or
    refuses, no further sample is begun.

    Args:
        source: The samples, set up.
        client: Who is asked.
        cache: What is known already, and where new ratings go.
        progress: Called with 1 after each sample.
    """
    found: dict[int, tuple[str, dict[str, float] | Exception]] = {}
    stopped: str | None = None
    todo: Iterator[int] = iter(range(len(source)))
    waiting: dict[Future[tuple[str, dict[str, float] | Exception]], int] = {}
    reading = threading.Lock()
    with ThreadPoolExecutor(client.options.concurrency) as pool:
        while True:
            while stopped is None and len(waiting) < 2 * client.options.concurrency:
                if (index := next(todo, None)) is None:
                    break
                waiting[pool.submit(_rate, source, index, client, cache, reading)] = index
            if not waiting:
                break
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                index = waiting.pop(future)
                found[index] = future.result()
                progress(1)
                if isinstance(problem := found[index][1], ServerError) and stopped is None:
                    stopped = str(problem)
                    for other in [other for other in waiting if other.cancel()]:
                        del waiting[other]
    ratings = Ratings(stopped=stopped)
    for _, (name, result) in sorted(found.items()):
        if isinstance(result, Exception):
            ratings.problems[name] = str(result)
        else:
            ratings.parts[name] = result
    return ratings


def _rate(
    source: SampleSource, index: int, client: RatingClient, cache: RatingCache, reading: threading.Lock
) -> tuple[str, dict[str, float] | Exception]:
    """Id and rating of one sample, or why it has none."""
    name = f"sample {index}"
    try:
        with reading:  # sources are not made for several threads
            sample = check_sample(source[index])
        name = sample.id
        messages = rating_messages(sample, client.options.image_side)
        key = question_key(client.options.model, SCHEMA, messages)
        rating = cache.get(key)
        if rating is None:
            rating = client.rate(messages)
            cache.put(key, name, rating)
    except (ValueError, ServerError) as error:
        return name, error
    return name, rating
