"""A patient client of an OpenAI-compatible server, and answers kept on disk as they come in."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import urlsplit

from pixelthink.files.jsonl import append_log, read_log

RETRIED = (408, 409, 425, 429)
LONGEST_WAIT = 60.0

Answer = TypeVar("Answer")
ServerFailure = Literal["timeout", "unreachable", "refused"]
"""Why a server gave no answer: not in time; no connection, or one that broke; an HTTP error."""


class ServerError(Exception):
    """The server cannot be reached, or refuses: asking it for other samples is of no use either.

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
            raise ValueError(f"server must be an http or https address, got {self.server!r}")
        if self.concurrency < 1 or self.retries < 0:
            raise ValueError("concurrency must be at least 1, retries must not be negative")


class ChatClient:
    """Asks for one structured answer at a time; may be used by several threads.

    Args:
        options: The server and how it is asked.
        api_key: Sent as a bearer token where there is one; never written anywhere.
        sleep: What waits.
    """

    def __init__(
        self, options: ChatOptions, api_key: str | None = None, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.options = options
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._sleep = sleep
        local = urlsplit(options.server).hostname in ("127.0.0.1", "localhost", "::1")
        direct = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_NoRedirect(), *direct)

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
        problem: Exception = ServerError("not asked")
        delay = self.options.backoff
        for attempt in range(self.options.retries + 1):
            if attempt:
                self._sleep(min(delay, LONGEST_WAIT))
                delay *= 2
            try:
                return parse(self._request(messages, schema, name, attempt))
            except ValueError as error:
                problem = error
            except urllib.error.HTTPError as error:
                problem = ServerError(f"{self.options.server}: HTTP {error.code}: {_body(error)}", "refused")
                if error.code < 500 and error.code not in RETRIED:
                    break
                delay = max(delay, _retry_after(error))
            except (OSError, http.client.HTTPException) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                problem = ServerError(f"{self.options.server}: {reason}", _failure(error))
        raise problem

    def _request(
        self, messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any], name: str, attempt: int
    ) -> str:
        """Text of one answer; the first attempt is greedy, a repeated one is not, lest it fail in the same way."""
        body = {
            "model": self.options.model,
            "messages": messages,
            "max_tokens": self.options.max_tokens,
            "temperature": 0.0 if attempt == 0 else 0.7,
            "seed": attempt,
            "response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": schema}},
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


class AnswerCache(Generic[Answer]):
    """Answers by what was asked, appended to a JSON Lines file as they come in; a torn last line is forgotten.

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
                raise ValueError(f"{path}:{number}: not a cached {field}") from None

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
    """What a cached answer is found by: a hash of all that the answer depends on."""
    asked = json.dumps([model, schema, messages], sort_keys=True)
    return hashlib.sha256(asked.encode("utf-8")).hexdigest()


def _failure(error: Exception) -> ServerFailure:
    """Whether the server was too slow, or was not there."""
    reason = getattr(error, "reason", error)
    return "timeout" if isinstance(reason, TimeoutError) else "unreachable"


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
