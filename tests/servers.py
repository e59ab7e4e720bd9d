"""A real vLLM server behind its front, for tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import ROOT

KEY = "a-key-for-tests-0123456789"
KEY_VARIABLE = "PIXELTHINK_API_KEY"
START_SECONDS = 240


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """`python -m pixelthink.serving` on loopback, with a key.

    Args:
        model: Folder of the policy.
        weights_folder: Where it may reload weights from; its own log goes beside it.
        port: Where it listens.
    """

    def __init__(self, model: Path | str, weights_folder: Path, port: int | None = None) -> None:
        self.model, self.weights_folder = model, weights_folder
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = weights_folder.parent / f"server-{self.port}.log"
        self.start()

    def start(self) -> None:
        """Starts it without waiting."""
        command = [
            *(sys.executable, "-m", "pixelthink.serving", "--model", str(self.model), "--port", str(self.port)),
            *("--weights_folder", str(self.weights_folder), "--dtype", "float32", "--max_model_len", "1024"),
            *("--enforce_eager", "true", "--max_body_mb", "2", "--vllm_args", "[--max-num-seqs=64]"),
        ]
        environment = {**os.environ, KEY_VARIABLE: KEY, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> Server:
        """Waits until it answers."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-2000:]
            try:
                if self.ask("GET", "/health").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise TimeoutError(self.log.read_text(errors="replace")[-2000:])

    def ask(self, method: str, path: str, key: str | None = KEY, **options: object) -> httpx.Response:
        """One request."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.request(method, self.url + path, headers=headers, timeout=60, trust_env=False, **options)  # type: ignore[arg-type]

    def kill(self) -> None:
        """SIGKILL to front and vLLM alike."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def stop(self) -> None:
        """Asks it to end, as Ctrl-C would."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()


@pytest.fixture(scope="session")
def running_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Two servers of the shipped tiny policy, started at the same time."""
    pytest.importorskip("vllm", reason="make vllm")
    weights = tmp_path_factory.mktemp("servers") / "weights"
    weights.mkdir()
    servers = (Server(ROOT / "assets/tiny_policy", weights), Server(ROOT / "assets/tiny_policy", weights))
    try:
        yield servers
    finally:
        for server in servers:
            server.stop()


@pytest.fixture
def rollout_servers(running_servers: tuple[Server, Server]) -> tuple[Server, Server]:
    """The two, up; one that a test has killed is started again for the next test that wants it."""
    for server in running_servers:
        if server.process.poll() is not None:
            server.start()
    for server in running_servers:
        server.wait()
    return running_servers
