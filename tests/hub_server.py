"""A stand-in for the Hugging Face hub: one data set, spoken to by the real client over HTTP."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves files of one data set; `*.parquet` are large files, with a SHA-256, all others small ones.

    Attributes:
        url: For HF_ENDPOINT.
        served: What is sent in place of a file's content, by name; the announcements stay true.
        breaks: File → bytes after which its next download breaks off.
        stalls: Files whose download never comes to its end; `stalled` is set when one of them hangs.
        asked: (method, file, Range header) of every request for a file.
    """

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        self.files, self.served, self.breaks = files, dict[str, bytes](), dict[str, int]()
        self.stalls, self.stalled = set[str](), threading.Event()
        self.asked: list[tuple[str, str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                if re.fullmatch(f"/api/datasets/{repo}(/revision/(main|{COMMIT}))?", path):
                    self.reply_json({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]})
                elif path == f"/api/datasets/{repo}/tree/{COMMIT}":
                    self.reply_json([entry(name, data) for name, data in files.items()])
                elif path.startswith(prefix := f"/datasets/{repo}/resolve/{COMMIT}/"):
                    self.reply_file(path.removeprefix(prefix))
                else:
                    self.reply(404, {"X-Error-Code": "RepoNotFound"}, b"{}")

            def reply_json(self, value: Any) -> None:
                self.reply(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

            def reply_file(self, name: str) -> None:
                wanted = self.headers.get("Range")
                hub.asked.append((self.command, name, wanted))
                data = hub.served.get(name, files[name])
                headers = {"ETag": f'"{digest(name, files[name])}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
                if name in hub.stalls and self.command == "GET":
                    self.send_response(200)
                    for header, value in {**headers, "Content-Length": str(len(data))}.items():
                        self.send_header(header, value)
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    hub.stalled.set()
                    self.connection.recv(1)  # until the other side is gone
                    self.close_connection = True
                    return
                if wanted is None:
                    self.reply(200, headers, data, hub.breaks.pop(name, None) if self.command == "GET" else None)
                    return
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                self.reply(206, headers, data[start:])

            def reply(self, status: int, headers: dict[str, str], body: bytes, stop_after: int | None = None) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                self.wfile.write(body[:stop_after])
                if stop_after is not None:
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True

            def log_message(self, *arguments: Any) -> None:
                """Says nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *arguments: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        """Closes the port."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def digest(name: str, data: bytes) -> str:
    """A file's digest as the hub has it."""
    if name.endswith(".parquet"):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entry(name: str, data: bytes) -> dict[str, Any]:
    """A file in the listing of a tree."""
    known: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": digest(name, data)}
    if name.endswith(".parquet"):
        known["oid"] = "f" * 40
        known["lfs"] = {"oid": digest(name, data), "size": len(data), "pointerSize": 130}
    return known
