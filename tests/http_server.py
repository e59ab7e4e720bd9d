"""A small HTTP server that answers chat requests by a script."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """An HTTP server that answers its n-th request by `answer(n, body)`: (status, headers, body), or None to hang up.

    Attributes:
        requests: (headers, body) of every request so far.
        most: Most requests that were being answered at once.
    """

    def __init__(self, answer: Callable[[int, dict[str, Any]], tuple[int, dict[str, str], bytes] | None]) -> None:
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.most = self._now = 0
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                    number = len(outer.requests)
                    outer.requests.append(({name.title(): value for name, value in self.headers.items()}, body))
                try:
                    reply = answer(number, body) if self.path == "/v1/chat/completions" else (404, {}, b"no such page")
                finally:
                    with lock:
                        outer._now -= 1
                if reply is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(reply[0])
                for name, value in {**reply[1], "Content-Length": str(len(reply[2]))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply[2])

            def log_message(self, *arguments: Any) -> None:
                """Says nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.handle_error = lambda *arguments: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        """Closes the port."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
