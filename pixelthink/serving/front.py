"""The authenticating front: each route asks for the key, and bodies are checked before they go to vLLM."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import httpx
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pixelthink.rollouts.vllm_client import KEEP_ALIVE_SECONDS
from pixelthink.serving.rules import Rules

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"]
CONNECT_SECONDS = 10.0


class Front:
    """Checks requests and passes them on to vLLM.

    Args:
        socket: Unix socket that vLLM listens on.
        rules: Allowed routes and their bodies.
        key: Bearer token of the clients; None lets in everyone who reaches the port.
        max_body_bytes: Longest body.
    """

    def __init__(self, socket: Path, rules: Rules, key: str | None, max_body_bytes: int) -> None:
        self._rules = rules
        self._key = None if key is None else _digest(key)
        self._max_body_bytes = max_body_bytes
        transport = httpx.AsyncHTTPTransport(
            uds=str(socket), limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_SECONDS)
        )
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)  # the client has a timeout of its own
        self._vllm = httpx.AsyncClient(transport=transport, base_url="http://vllm", timeout=timeout)

    def application(self) -> Starlette:
        """Returns the ASGI application."""
        routes = [Route("/{path:path}", self.answer, methods=METHODS)]
        return Starlette(routes=routes, exception_handlers={HTTPException: _error})

    async def answer(self, request: Request) -> Response:
        """Returns vLLM's answer to an allowed request, and an error for any other."""
        self._authenticate(request)
        body = await self._checked_body(request)
        headers = {"Content-Type": "application/json"} if body else {}
        try:
            reply = await self._vllm.request(request.method, request.url.path, content=body, headers=headers)
        except httpx.TransportError as error:
            raise HTTPException(502, f"vLLM does not answer: {type(error).__name__}") from None
        return Response(reply.content, reply.status_code, media_type=reply.headers.get("content-type"))

    def _authenticate(self, request: Request) -> None:
        """Checks the key in constant time."""
        if self._key is None:
            return
        scheme, _, presented = request.headers.get("authorization", "").partition(" ")
        if not hmac.compare_digest(_digest(presented), self._key) or scheme.lower() != "bearer":
            raise HTTPException(401, "the key is missing or wrong")

    async def _checked_body(self, request: Request) -> bytes:
        """Reads the body and checks it against the route."""
        method, path = request.method, request.url.path
        if (method, path) not in self._rules:
            raise HTTPException(404, "there is no such route here")
        if request.url.query:
            raise HTTPException(400, "no route takes query parameters")
        expected = self._rules[method, path]
        body = await self._read(request)
        if expected is None:
            if body:
                raise HTTPException(400, f"{path} takes no body")
            return b""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "the body must be application/json")
        try:
            expected.model_validate_json(body or b"{}")
        except ValidationError as error:
            raise HTTPException(400, _first_problem(error)) from None
        return body or b"{}"

    async def _read(self, request: Request) -> bytes:
        """Reads the body, up to its longest length."""
        pieces, length = [], 0
        async for piece in request.stream():
            length += len(piece)
            if length > self._max_body_bytes:
                raise HTTPException(413, f"the body is longer than {self._max_body_bytes} bytes")
            pieces.append(piece)
        return b"".join(pieces)


async def _error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": {"message": error.detail, "code": error.status_code}}, error.status_code)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()


def _first_problem(error: ValidationError) -> str:
    """Says what is wrong and where, without the value, which may be a whole image."""
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "body"
    more = error.error_count() - 1
    return f"{where}: {problem['msg']}" + (f" (and {more} more)" if more else "")
