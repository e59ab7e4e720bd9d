"""Options of the server and what must not be combined."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

SHORTEST_KEY = 16
"""A key shorter than this is no key."""


@dataclass(frozen=True)
class ServeOptions:
    """A vLLM server and its front.

    Attributes:
        model: Folder in Hugging Face format, or a hub id.
        host: Address that the front listens on; beyond loopback only with a key.
        port: Its port; 0 takes a free one, which is printed.
        api_key_variable: Environment variable that holds the key, which every request then has to present.
        weights_folder: Folder, shared with whoever trains, from which weights may be reloaded; null allows none.
        nccl: Also take weights over NCCL (GPUs only).
        served_model_name: Name by which chat requests call the model.
        dtype: Precision of the weights; parity with the policy needs the policy's.
        max_model_len: Longest prompt and completion together, in tokens; null takes the model's own limit.
        images_per_prompt: Most images of a request.
        tensor_parallel_size: GPUs that share the model.
        gpu_memory_utilization: Share of each GPU's memory.
        enforce_eager: Capture no CUDA graphs.
        seconds_to_start: How long vLLM may take to come up.
        max_body_mb: Longest request in MiB.
        ssl_certfile: Certificate for HTTPS; without one the key travels in the clear.
        ssl_keyfile: The certificate's private key.
        vllm_args: Further options of vLLM's own server, as it names them.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_variable: str = "PIXELTHINK_API_KEY"
    weights_folder: str | None = None
    nccl: bool = False
    served_model_name: str = "policy"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_model_len: int | None = None
    images_per_prompt: int = 1
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = False
    seconds_to_start: float = 900.0
    max_body_mb: int = 64
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    vllm_args: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.max_body_mb < 1:
            raise ValueError("--max_body_mb must be at least 1")
        if self.weights_folder is not None and not Path(self.weights_folder).is_dir():
            raise NotADirectoryError(f"--weights_folder: there is no folder {self.weights_folder!r}")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("--ssl_certfile and --ssl_keyfile go together")
        for option in self.vllm_args:
            if option.split("=")[0] in ("--host", "--port", "--uds", "--api-key", "--allowed-local-media-path"):
                raise ValueError(f"--vllm_args: {option.split('=')[0]} is the front's business")

    def checked_key(self, key: str | None) -> str | None:
        """The key, where it suffices for the address.

        Args:
            key: What the environment variable holds.

        Raises:
            ValueError: an address beyond loopback without a key, or with one that can be guessed; one line.
        """
        if key and len(key) < SHORTEST_KEY:
            raise ValueError(f"the key in {self.api_key_variable} is shorter than {SHORTEST_KEY} characters")
        if not key and not is_loopback(self.host):
            raise ValueError(
                f"--host {self.host} is reachable from other machines, and whoever reaches it could replace the "
                f"weights: set a key in {self.api_key_variable} (openssl rand -hex 32), or keep to 127.0.0.1"
            )
        return key or None


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, reachable from nowhere else."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return False
