"""The authenticating front: every route asks for the key, only known routes exist, bodies are checked before vLLM."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import httpx
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pixelthink.serving.rules import Rules

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"]
CONNECT_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 2.0
"""Connections to vLLM are given up before it hangs up on them after five idle seconds."""


class Refused(Exception):
    """A request that goes no further.

    Args:
        status: HTTP status.
        reason: One line for whoever asked.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Front:
    """Checks requests and hands them to vLLM.

    Args:
        socket: Unix socket that vLLM listens on.
        rules: What is let through.
        key: What clients have to present as a bearer token; None lets everyone in who reaches the port.
        max_body_bytes: Longest body.
    """

    def __init__(self, socket: Path, rules: Rules, key: str | None, max_body_bytes: int) -> None:
        self._rules = rules
        self._key = None if key is None else _digest(key)
        self._max_body_bytes = max_body_bytes
        transport = httpx.AsyncHTTPTransport(
            uds=str(socket), limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_SECONDS)
        )
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)  # how long an answer may take is the client's business
        self._vllm = httpx.AsyncClient(transport=transport, base_url="http://vllm", timeout=timeout)

    def application(self) -> Starlette:
        """The ASGI application."""
        return Starlette(routes=[Route("/{path:path}", self.answer, methods=METHODS)])

    async def answer(self, request: Request) -> Response:
        """vLLM's answer to a request that may pass, or why it may not."""
        try:
            self._authenticate(request)
            body = await self._checked_body(request)
        except Refused as refusal:
            return JSONResponse({"error": {"message": refusal.reason, "code": refusal.status}}, refusal.status)
        headers = {"Content-Type": "application/json"} if body else {}
        try:
            reply = await self._vllm.request(request.method, request.url.path, content=body, headers=headers)
        except httpx.TransportError as error:
            reason = f"vLLM does not answer: {type(error).__name__}"
            return JSONResponse({"error": {"message": reason, "code": 502}}, 502)
        return Response(reply.content, reply.status_code, media_type=reply.headers.get("content-type"))

    def _authenticate(self, request: Request) -> None:
        """Lets holders of the key pass; compares in constant time, whatever was presented."""
        if self._key is None:
            return
        scheme, _, presented = request.headers.get("authorization", "").partition(" ")
        if not hmac.compare_digest(_digest(presented), self._key) or scheme.lower() != "bearer":
            raise Refused(401, "the key is missing or wrong")

    async def _checked_body(self, request: Request) -> bytes:
        """The body, once it is known to fit the route."""
        method, path = request.method, request.url.path
        if (method, path) not in self._rules:
            raise Refused(404, "there is no such route here")
        if request.url.query:
            raise Refused(400, "no route takes query parameters")
        expected = self._rules[method, path]
        body = await self._read(request)
        if expected is None:
            if body:
                raise Refused(400, f"{path} takes no body")
            return b""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "the body must be application/json")
        try:
            expected.model_validate_json(body or b"{}")
        except ValidationError as error:
            raise Refused(400, _first_problem(error)) from None
        return body or b"{}"

    async def _read(self, request: Request) -> bytes:
        """The whole body, unless it is too long."""
        pieces, length = [], 0
        async for piece in request.stream():
            length += len(piece)
            if length > self._max_body_bytes:
                raise Refused(413, f"the body is longer than {self._max_body_bytes} bytes")
            pieces.append(piece)
        return b"".join(pieces)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()


def _first_problem(error: ValidationError) -> str:
    """What is wrong and where; without the value, which may be a whole image."""
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "body"
    more = error.error_count() - 1
    return f"{where}: {problem['msg']}" + (f" (and {more} more)" if more else "")
