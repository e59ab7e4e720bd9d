"""Talking to vLLM servers: one connection pool a server, requests that are tried again within a bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

PASSING = (408, 409, 425, 429)
"""Refusals of a request that may succeed later; so may all from 500 on."""
LONGEST_WAIT = 30.0
KEEP_ALIVE_SECONDS = 2.0
CACHES = ("prefix", "mm", "encoder")

T = TypeVar("T")


class ServerUnavailable(OSError):
    """A server that cannot be reached or has trouble of its own; asking again may help."""


class ServerRefused(ValueError):
    """A server that understood and said no; asking again is of no use."""


@dataclass(frozen=True)
class Patience:
    """How often a request is tried.

    Attributes:
        retries: Further attempts after a failed one.
        backoff: Seconds before the first of them; each next one waits twice as long, at most half a minute.
        timeout: Seconds to wait for an answer.
    """

    retries: int = 6
    backoff: float = 2.0
    timeout: float = 600.0

    def __post_init__(self) -> None:
        if self.retries < 0 or self.backoff < 0 or self.timeout <= 0:
            raise ValueError("rollout: retries and backoff must not be negative, timeout must be positive")

    def attempts(self, ask: Callable[[int], T]) -> T:
        """What the first successful attempt gives.

        Args:
            ask: Called with the number of the attempt.

        Raises:
            ServerUnavailable: all attempts failed; the last one's reason.
        """
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(self.backoff * 2 ** (attempt - 1), LONGEST_WAIT))
            try:
                return ask(attempt)
            except ServerUnavailable as error:
                problem = error
        raise ServerUnavailable(f"{problem} (tried {self.retries + 1} times)")


class RolloutServer:
    """One server, as its front (`pixelthink.serving`) offers it.

    May be used by several threads.

    Args:
        address: E.g. "http://127.0.0.1:8000".
        key: Bearer token; never written anywhere.
        timeout: Seconds to wait for an answer.

    Attributes:
        answered: Generation requests that it has answered.

    Raises:
        ValueError: not an address; one line.
    """

    def __init__(self, address: str, key: str | None, timeout: float) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise ValueError(f"rollout.servers: {address!r} is no address like http://127.0.0.1:8000")
        self.address = address.rstrip("/")
        self.answered = 0
        self._client = httpx.Client(
            base_url=self.address,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=10.0),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_SECONDS),
            trust_env=parts.hostname not in ("127.0.0.1", "localhost", "::1"),  # no proxy on the way to this machine
        )

    def get(self, path: str) -> Any:
        """The JSON answer to a GET."""
        return self._request("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer to a POST, or None where there is none."""
        return self._request("POST", path, body or {})

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        try:
            reply = self._client.request(method, path, json=body)
        except httpx.TransportError as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ServerUnavailable(f"rollout server {self.address}: {reason}") from None
        if reply.status_code == 200:
            try:
                return reply.json() if reply.content else None
            except ValueError:
                raise ServerUnavailable(f"rollout server {self.address}: {path} did not answer JSON") from None
        problem = f"rollout server {self.address}: {path}: HTTP {reply.status_code}: {_reason(reply)}"
        if reply.status_code >= 500 or reply.status_code in PASSING:
            raise ServerUnavailable(problem)
        raise ServerRefused(problem)

    def load(self, folder: Path, tag: str) -> None:
        """Has it replace its weights by those in a folder, drop what came from the old ones, and tag its answers."""
        self.post("/collective_rpc", {"method": "take_weights", "kwargs": {"weights_path": str(folder)}})
        self.adopt(tag)

    def adopt(self, tag: str) -> None:
        """Has it drop what came from the weights before and name the present ones in its answers.

        Raises:
            ServerUnavailable: requests of somebody else kept it from dropping its prefix cache.
        """
        for cache in CACHES:
            reply = self.post(f"/reset_{cache}_cache")
            if isinstance(reply, dict) and reply.get("success") is False:
                raise ServerUnavailable(f"rollout server {self.address}: its {cache} cache is in use by other requests")
        self.post("/update_weight_version", {"new_version": tag})

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()


class ServerPool:
    """Several servers that hold the same weights.

    Args:
        servers: At least one.
        patience: How often a request is tried; with several servers, each time with the next.
        concurrency: Requests at a time and server.
    """

    def __init__(self, servers: Sequence[RolloutServer], patience: Patience, concurrency: int) -> None:
        self.servers = tuple(servers)
        self.patience = patience
        self.concurrency = concurrency
        self.tag: str | None = None
        self.weights_folder: Path | None = None
        self._reloading = threading.Lock()

    def wait_until_up(self, seconds: float) -> None:
        """Waits until every server answers.

        Raises:
            ServerUnavailable: one does not within the time; one line that says how to start it.
        """
        deadline = time.monotonic() + seconds
        for server in self.servers:
            while True:
                try:
                    server.get("/health")
                    break
                except ServerUnavailable as error:
                    if time.monotonic() > deadline:
                        hint = "start it with: python -m pixelthink.serving --help"
                        raise ServerUnavailable(f"{error} (waited {seconds:g} s; {hint})") from None
                time.sleep(0.5)

    def generate(self, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answers to requests, in their order; request i begins with server i modulo their number."""
        with ThreadPoolExecutor(self.concurrency * len(self.servers)) as threads:
            asked = [threads.submit(self._ask, index, body) for index, body in enumerate(bodies)]
            try:
                return [future.result() for future in asked]
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def generate_on_each(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Every server's answer to one request."""
        return self.each(lambda server: self.patience.attempts(lambda attempt: self._answer(server, body)))

    def each(self, what: Callable[[RolloutServer], T]) -> list[T]:
        """Does something with all servers at the same time."""
        with ThreadPoolExecutor(len(self.servers)) as threads:
            return list(threads.map(what, self.servers))

    def load(self, folder: Path, tag: str) -> None:
        """Has all servers load weights, which stay there for servers that come back without."""
        self.each(lambda server: self.patience.attempts(lambda attempt: server.load(folder, tag)))
        self.tag, self.weights_folder = tag, folder

    def _ask(self, index: int, body: Mapping[str, Any]) -> dict[str, Any]:
        count = len(self.servers)
        return self.patience.attempts(lambda attempt: self._answer(self.servers[(index + attempt) % count], body))

    def _answer(self, server: RolloutServer, body: Mapping[str, Any]) -> dict[str, Any]:
        """A server's answer, which is used only if it was sampled with the weights that were handed over."""
        answer = server.post("/inference/v1/generate", body)
        server.answered += 1
        tags = {span["version"] for choice in answer["choices"] for span in choice["weight_versions"] or []}
        if self.tag is None or tags == {self.tag}:
            return dict(answer)
        found = ", ".join(sorted(tags)) or "none"
        problem = f"rollout server {server.address} answered with weights {found!r} instead of {self.tag!r}"
        if self.weights_folder is None:
            raise ServerRefused(f"{problem}: it was restarted, or something else writes to it")
        with self._reloading:  # it was restarted: it gets them again, once, and is asked again
            if server.get("/weight_info")["weight_version"] != self.tag:
                server.load(self.weights_folder, self.tag)
        raise ServerUnavailable(f"{problem}: it was restarted, or something else writes to it")

    def close(self) -> None:
        """Closes all connections."""
        for server in self.servers:
            server.close()


def _reason(reply: httpx.Response) -> str:
    """What a server says of its refusal, in short."""
    try:
        text = str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = reply.text
    return " ".join(text.split())[:200]
