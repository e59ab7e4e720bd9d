"""A client of vLLM servers: one connection pool per server, and requests that are retried a bounded number of times."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from pixelthink.errors import UserError

RETRIED_STATUSES = (408, 409, 425, 429)
"""HTTP statuses below 500 after which a request is retried; all from 500 on are."""
MAX_BACKOFF_SECONDS = 30.0
KEEP_ALIVE_SECONDS = 2.0
"""Idle connections are closed after this; vLLM closes them after five seconds."""
CACHES = ("prefix", "mm", "encoder")
"""vLLM's caches of results that were computed with the weights."""

T = TypeVar("T")


class ServerUnavailable(UserError, OSError):
    """A server cannot be reached or has an internal error. A retry may help."""


class ServerRefused(UserError):
    """A server understood a request and refused it, or answered with other weights. A retry does not help."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often a failed request is retried.

    Attributes:
        max_retries: Attempts after the first one.
        backoff: Seconds before the first retry. The wait doubles with each further retry, up to 30 seconds.
        timeout: Seconds to wait for an answer.
    """

    max_retries: int = 6
    backoff: float = 2.0
    timeout: float = 600.0

    def __post_init__(self) -> None:
        if self.max_retries < 0 or self.backoff < 0 or self.timeout <= 0:
            raise UserError("rollout.retry: max_retries and backoff must not be negative, timeout must be positive")

    def call(self, function: Callable[[int], T]) -> T:
        """Calls a function with the number of the attempt, from 0, until it does not raise `ServerUnavailable`.

        Raises:
            ServerUnavailable: all attempts failed; gives the reason of the last one.
        """
        for attempt in range(self.max_retries + 1):
            if attempt:
                time.sleep(min(self.backoff * 2 ** (attempt - 1), MAX_BACKOFF_SECONDS))
            try:
                return function(attempt)
            except ServerUnavailable as error:
                problem = error
        raise ServerUnavailable(f"{problem} (tried {self.max_retries + 1} times)")


class RolloutServer:
    """One server that `python -m pixelthink.serving` started. Several threads may use it.

    Args:
        address: E.g. "http://127.0.0.1:8000".
        key: Bearer token; never written anywhere.
        timeout: Seconds to wait for an answer.

    Attributes:
        answered: Number of generation requests that it has answered.

    Raises:
        UserError: `address` is not an address.
    """

    def __init__(self, address: str, key: str | None, timeout: float) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise UserError(f"rollout.servers: {address!r} is no address like http://127.0.0.1:8000")
        self.address = address.rstrip("/")
        self.answered = 0
        self._client = httpx.Client(
            base_url=self.address,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=10.0),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_SECONDS),
            trust_env=not is_loopback(parts.hostname),  # no proxy on the way to this machine
        )

    def get(self, path: str) -> Any:
        """Returns the JSON answer to a GET request."""
        return self._request("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Returns the JSON answer to a POST request, None where the answer is empty."""
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
        try:
            reason = str(reply.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            reason = reply.text
        reason = " ".join(reason.split())[:200]
        retried = reply.status_code >= 500 or reply.status_code in RETRIED_STATUSES
        kind = ServerUnavailable if retried else ServerRefused
        raise kind(f"rollout server {self.address}: {path}: HTTP {reply.status_code}: {reason}")

    def wait_until_up(self, seconds: float) -> None:
        """Waits until it answers.

        Raises:
            ServerUnavailable: it did not answer in time. The message says how to start it.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.get("/health")
                return
            except ServerUnavailable as error:
                if time.monotonic() > deadline:
                    hint = "start it with: python -m pixelthink.serving --help"
                    raise ServerUnavailable(f"{error} (waited {seconds:g} s; {hint})") from None
            time.sleep(0.5)

    def load(self, folder: Path, tag: str) -> None:
        """Replaces its weights by the safetensors files in a folder, clears its caches and sets the version tag."""
        self.post("/collective_rpc", {"method": "take_weights", "kwargs": {"weights_path": str(folder)}})
        self.set_version(tag)

    def set_version(self, tag: str) -> None:
        """Clears all caches and sets the version tag that the server's answers carry from now on.

        Raises:
            ServerUnavailable: requests of another client kept it from clearing a cache.
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
    """One or several servers that hold the same weights. A failed request is retried with the next server.

    Args:
        servers: At least one.
        retry: How often a request is retried.
        concurrency: Requests at a time per server.

    Attributes:
        tag: Version tag of the weights that this run handed over; None before that.
        weights_folder: Folder with these weights, for servers that were restarted; None with NCCL.
    """

    def __init__(self, servers: Sequence[RolloutServer], retry: RetryPolicy, concurrency: int) -> None:
        self.servers = tuple(servers)
        self.retry = retry
        self.concurrency = concurrency
        self.tag: str | None = None
        self.weights_folder: Path | None = None
        self._reloading = threading.Lock()

    def generate(self, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Returns the answers to requests, in their order. Request i goes to server i modulo their number first."""
        count = len(self.servers)

        def ask(index: int) -> dict[str, Any]:
            return self.retry.call(lambda attempt: self._answer(self.servers[(index + attempt) % count], bodies[index]))

        with ThreadPoolExecutor(self.concurrency * count) as threads:
            futures = [threads.submit(ask, index) for index in range(len(bodies))]
            try:
                return [future.result() for future in futures]
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def score_on_each(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns every server's answer to one request."""
        return self.each(lambda server: self.retry.call(lambda attempt: self._answer(server, body)))

    def each(self, function: Callable[[RolloutServer], T]) -> list[T]:
        """Calls a function for all servers at the same time and returns its results."""
        with ThreadPoolExecutor(len(self.servers)) as threads:
            return list(threads.map(function, self.servers))

    def load(self, folder: Path, tag: str) -> None:
        """Has all servers load weights from a folder, which has to stay there for servers that are restarted."""
        self.each(lambda server: self.retry.call(lambda attempt: server.load(folder, tag)))
        self.tag, self.weights_folder = tag, folder

    def _answer(self, server: RolloutServer, body: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a server's answer after checking that every completion carries the version tag of this run."""
        if self.tag is None:
            raise RuntimeError("the rollout servers hold no weights of this run: call sync before generate and score")
        answer = server.post("/inference/v1/generate", body)
        server.answered += 1
        spans = [choice.get("weight_versions") or [{"version": None}] for choice in answer["choices"]]
        tags = {span["version"] for of_choice in spans for span in of_choice}
        if tags == {self.tag}:
            return dict(answer)
        found = ", ".join(sorted(tag or "none" for tag in tags)) or "none"
        problem = (
            f"rollout server {server.address} answered with weights {found!r} instead of {self.tag!r}: it was "
            "restarted, or another run writes to it"
        )
        if self.weights_folder is None:
            raise ServerRefused(problem)
        with self._reloading:  # only the first of several threads hands the weights over again
            if server.get("/weight_info")["weight_version"] != self.tag:
                server.load(self.weights_folder, self.tag)
        raise ServerUnavailable(problem)

    def close(self) -> None:
        """Closes all connections."""
        for server in self.servers:
            server.close()


def is_loopback(host: str) -> bool:
    """Returns whether an address belongs to this machine and cannot be reached from another one."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return False
