"""A client of an OpenAI-compatible server that retries, and a cache of its answers on disk."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import urlsplit

from PIL import Image
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from pixelthink.errors import UserError
from pixelthink.files.jsonl import append_log, read_log, row_error

RETRIED = (408, 409, 425, 429)
"""HTTP statuses below 500 after which another attempt may succeed."""
LONGEST_WAIT = 60.0
NO_KEY = "EMPTY"
"""Sent where there is no key, as vLLM's documentation does; the openai client refuses to send none."""

Answer = TypeVar("Answer")
ServerFailure = Literal["timeout", "unreachable", "refused"]
"""Why a server gave no answer: not in time; no connection, or one that broke; an HTTP error."""


class ServerError(Exception):
    """The server cannot be reached, or refuses; asking it for other samples is of no use either.

    Args:
        message: One line.
        cause: What kind of failure it is.
    """

    def __init__(self, message: str, cause: ServerFailure = "unreachable") -> None:
        super().__init__(message)
        self.cause: ServerFailure = cause


@dataclass(frozen=True)
class ChatOptions:
    """The server and how it is asked.

    Attributes:
        server: Base address, e.g. "http://127.0.0.1:8000/v1".
        model: Name that the server knows the model by.
        concurrency: Requests at a time.
        retries: Further attempts after a failed one.
        backoff: Seconds before the first of them; each next one waits twice as long, at most a minute.
        timeout: Seconds to wait for an answer.
        max_tokens: Limit of an answer's length.
    """

    server: str
    model: str
    concurrency: int = 8
    retries: int = 5
    backoff: float = 1.0
    timeout: float = 120.0
    max_tokens: int = 100

    def __post_init__(self) -> None:
        if urlsplit(self.server).scheme not in ("http", "https"):
            raise UserError(f"server must be an http or https address, got {self.server!r}")
        if self.concurrency < 1 or self.retries < 0:
            raise UserError("concurrency must be at least 1, retries must not be negative")


class ChatClient:
    """Asks for one structured answer at a time; may be used by several threads.

    Redirects are not followed: they would carry the key to another server.

    Args:
        options: The server and how it is asked.
        api_key: Sent as a bearer token where there is one; never written anywhere.
        sleep: Waits between attempts.
    """

    def __init__(
        self, options: ChatOptions, api_key: str | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        import openai

        self.options = options
        self._sleep = sleep
        local = urlsplit(options.server).hostname in ("127.0.0.1", "localhost", "::1")
        http = openai.DefaultHttpxClient(follow_redirects=False, trust_env=not local)  # no proxy to this machine
        self._client = openai.OpenAI(
            api_key=api_key or NO_KEY,
            base_url=options.server,
            timeout=options.timeout,
            max_retries=0,
            http_client=http,
        )

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        schema: Mapping[str, Any],
        name: str,
        parse: Callable[[str], Answer],
    ) -> Answer:
        """One answer, tried again while that may help.

        Args:
            messages: Chat messages in the OpenAI format.
            schema: JSON schema of the answer.
            name: What the server shall call the schema.
            parse: Reads the answer's text; its ValueError asks again.

        Raises:
            ValueError: the last answer could not be used.
            ServerError: the server refused, or could not be reached any more, or not in time.
        """
        import openai

        attempts = itertools.count()
        retrying = Retrying(
            stop=stop_after_attempt(self.options.retries + 1),
            wait=_Backoff(self.options.backoff),
            retry=retry_if_exception(_may_pass),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(lambda: parse(self._request(messages, schema, name, next(attempts))))
        except openai.APIStatusError as error:
            body = " ".join(error.response.text[:500].split())[:200]
            raise ServerError(f"{self.options.server}: HTTP {error.status_code}: {body}", "refused") from None
        except openai.APIConnectionError as error:
            reason = " ".join(str(error.__cause__ or error).split()) or type(error.__cause__).__name__
            cause: ServerFailure = "timeout" if isinstance(error, openai.APITimeoutError) else "unreachable"
            raise ServerError(f"{self.options.server}: {reason}", cause) from None

    def _request(
        self, messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any], name: str, attempt: int
    ) -> str:
        """Text of one answer; the first attempt is greedy, later ones are sampled, so that they can differ."""
        create: Any = self._client.chat.completions.with_raw_response.create
        raw = create(
            model=self.options.model,
            messages=messages,
            max_tokens=self.options.max_tokens,
            temperature=0.0 if attempt == 0 else 0.7,
            seed=attempt,
            response_format={"type": "json_schema", "json_schema": {"name": name, "schema": schema}},
        ).content
        try:
            text = json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise ValueError(f"the server's answer is no chat completion: {raw[:60]!r}") from None
        if not isinstance(text, str):
            raise ValueError("the server's answer holds no text")
        return text


class _Backoff:
    """Seconds before the next attempt: each wait is twice the last one, and never shorter than the server asks for."""

    def __init__(self, first: float) -> None:
        self.seconds = first / 2

    def __call__(self, state: RetryCallState) -> float:
        error: Any = state.outcome.exception() if state.outcome is not None else None
        try:
            asked = float(error.response.headers.get("Retry-After", 0))
        except (AttributeError, ValueError):  # no HTTP error; a date
            asked = 0.0
        self.seconds = max(2 * self.seconds, min(asked, LONGEST_WAIT))
        return min(self.seconds, LONGEST_WAIT)


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed: not where the server refuses for good."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return error.status_code >= 500 or error.status_code in RETRIED
    return isinstance(error, ValueError | openai.APIConnectionError)


class AnswerCache(Generic[Answer]):
    """Answers by question, appended to a JSON Lines file as they come in; a half-written last line is dropped.

    Args:
        path: The file.
        field: What an answer is called there.
        check: Reads an answer's JSON text.
    """

    def __init__(self, path: str | Path, field: str, check: Callable[[str], Answer]) -> None:
        self.path = Path(path)
        self.field = field
        self._answers: dict[str, Answer] = {}
        self._lock = threading.Lock()
        for number, row in enumerate(read_log(path), start=1):
            try:
                self._answers[row["key"]] = check(json.dumps(row[field]))
            except (ValueError, KeyError, TypeError):
                raise row_error(path, number, f"not a cached {field}; delete the file or the line") from None

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        """The answer to a question, or None."""
        return self._answers.get(key)

    def put(self, key: str, name: str, answer: Answer) -> None:
        """Keeps an answer, on disk at once."""
        with self._lock:
            self._answers[key] = answer
            append_log(self.path, [{"key": key, "id": name, self.field: answer}])


def question_key(model: str, schema: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> str:
    """Key of a cached answer: a hash of everything that the answer depends on."""
    asked = json.dumps([model, schema, messages], sort_keys=True)
    return hashlib.sha256(asked.encode("utf-8")).hexdigest()


def image_part(image: Image.Image, side: int) -> dict[str, Any]:
    """The part of a message that shows an image, as a JPEG with a longer side of at most `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=90)
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": url}}
