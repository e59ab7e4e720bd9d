"""A patient client of an OpenAI-compatible server, and ratings by many threads, kept as they come in."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pixelthink.data.base import SampleSource
from pixelthink.data.checks import check_sample
from pixelthink.data.rating import SCHEMA, parse_rating, rating_messages
from pixelthink.jsonl import append_log, read_log

RETRIED = (408, 409, 425, 429)
LONGEST_WAIT = 60.0


class ServerError(Exception):
    """The server cannot be reached, or refuses: asking it for other samples is of no use either."""


@dataclass(frozen=True)
class RaterOptions:
    """The server and how it is asked.

    Attributes:
        server: Base address, e.g. "http://127.0.0.1:8000/v1".
        model: Name that the server knows the model by.
        concurrency: Requests at a time.
        retries: Further attempts after a failed one.
        backoff: Seconds before the first of them; each next one waits twice as long, at most a minute.
        timeout: Seconds to wait for an answer.
        max_tokens: Limit of an answer's length.
        image_side: Longer images are shrunk to this side.
    """

    server: str
    model: str
    concurrency: int = 8
    retries: int = 5
    backoff: float = 1.0
    timeout: float = 120.0
    max_tokens: int = 100
    image_side: int = 1024

    def __post_init__(self) -> None:
        if urlsplit(self.server).scheme not in ("http", "https"):
            raise ValueError(f"server must be an http or https address, got {self.server!r}")
        if self.concurrency < 1 or self.retries < 0:
            raise ValueError("concurrency must be at least 1, retries must not be negative")


class RatingClient:
    """Asks for one rating at a time; may be used by several threads.

    Args:
        options: The server and how it is asked.
        api_key: Sent as a bearer token where there is one; never written anywhere.
        sleep: What waits.
    """

    def __init__(
        self, options: RaterOptions, api_key: str | None = None, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.options = options
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._sleep = sleep
        local = urlsplit(options.server).hostname in ("127.0.0.1", "localhost", "::1")
        direct = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_NoRedirect(), *direct)

    def rate(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """One rating, tried again while that may help.

        Raises:
            ValueError: the last answer could not be used.
            ServerError: the server refused, or could not be reached any more.
        """
        problem: Exception = ServerError("not asked")
        delay = self.options.backoff
        for attempt in range(self.options.retries + 1):
            if attempt:
                self._sleep(min(delay, LONGEST_WAIT))
                delay *= 2
            try:
                return parse_rating(self._ask(messages, attempt))
            except ValueError as error:
                problem = error
            except urllib.error.HTTPError as error:
                problem = ServerError(f"{self.options.server}: HTTP {error.code}: {_body(error)}")
                if error.code < 500 and error.code not in RETRIED:
                    break
                delay = max(delay, _retry_after(error))
            except (OSError, http.client.HTTPException) as error:
                problem = ServerError(f"{self.options.server}: {' '.join(str(error).split()) or type(error).__name__}")
        raise problem

    def _ask(self, messages: Sequence[Mapping[str, Any]], attempt: int) -> str:
        """Text of one answer; the first attempt is greedy, a repeated one is not, lest it fail in the same way."""
        body = {
            "model": self.options.model,
            "messages": messages,
            "max_tokens": self.options.max_tokens,
            "temperature": 0.0 if attempt == 0 else 0.7,
            "seed": attempt,
            "response_format": {"type": "json_schema", "json_schema": {"name": "rating", "schema": SCHEMA}},
        }
        url = self.options.server.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode("utf-8"), self._headers)
        with self._opener.open(request, timeout=self.options.timeout) as response:
            raw = response.read()
        try:
            text = json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise ValueError(f"the server's answer is no chat completion: {raw[:60]!r}") from None
        if not isinstance(text, str):
            raise ValueError("the server's answer holds no text")
        return text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: a redirect would carry the key to another server."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


class RatingCache:
    """Ratings by what was asked, appended to a JSON Lines file as they come in; a torn last line is forgotten.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._ratings: dict[str, dict[str, float]] = {}
        self._lock = threading.Lock()
        for number, row in enumerate(read_log(path), start=1):
            try:
                self._ratings[row["key"]] = parse_rating(json.dumps(row["rating"]))
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path}:{number}: not a cached rating") from None

    def __len__(self) -> int:
        return len(self._ratings)

    def get(self, key: str) -> dict[str, float] | None:
        """The rating of a question, or None."""
        return self._ratings.get(key)

    def put(self, key: str, name: str, rating: dict[str, float]) -> None:
        """Keeps a rating, on disk at once."""
        with self._lock:
            self._ratings[key] = rating
            append_log(self.path, [{"key": key, "id": name, "rating": rating}])


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
        asked = json.dumps([client.options.model, SCHEMA, messages], sort_keys=True)
        key = hashlib.sha256(asked.encode("utf-8")).hexdigest()
        rating = cache.get(key)
        if rating is None:
            rating = client.rate(messages)
            cache.put(key, name, rating)
    except (ValueError, ServerError) as error:
        return name, error
    return name, rating


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds that the server asks to wait."""
    try:
        return min(max(float(error.headers.get("Retry-After", 0)), 0.0), LONGEST_WAIT)
    except ValueError:  # a date
        return 0.0


def _body(error: urllib.error.HTTPError) -> str:
    try:
        return " ".join(error.read(500).decode("utf-8", "replace").split())[:200]
    except (OSError, http.client.HTTPException):
        return ""
