"""Options of `python -m pixelthink.serving`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pixelthink.errors import MissingFileError, UserError
from pixelthink.rollouts.vllm_client import is_loopback

MIN_KEY_LENGTH = 16
"""Characters; a shorter key can be guessed."""


@dataclass(frozen=True)
class ServeOptions:
    """A vLLM server and its front.

    Attributes:
        model: Folder in Hugging Face format, or a hub id.
        host: Address that the front listens on; beyond loopback only with a key.
        port: Its port; 0 takes a free one, which is printed.
        api_key_variable: Environment variable that holds the key, which every request then has to present.
        weights_folder: Folder, shared with the training, from which weights may be loaded; null allows none.
        nccl: Also take weights over NCCL (GPUs only).
        served_model_name: Name by which chat requests call the model.
        dtype: Precision of the weights; equal log-probabilities need the policy's.
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
            raise UserError("--max_body_mb must be at least 1")
        if self.weights_folder is not None and not Path(self.weights_folder).is_dir():
            raise MissingFileError(f"--weights_folder: there is no folder {self.weights_folder!r}")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise UserError("--ssl_certfile and --ssl_keyfile go together")
        for option in self.vllm_args:
            if option.split("=")[0] in ("--host", "--port", "--uds", "--api-key", "--allowed-local-media-path"):
                raise UserError(f"--vllm_args: {option.split('=')[0]} is the front's business")

    def checked_key(self, key: str | None) -> str | None:
        """Returns the key, or None without one.

        Args:
            key: Value of the environment variable.

        Raises:
            UserError: the key is too short, or it is missing and other machines can reach the address.
        """
        if key and len(key) < MIN_KEY_LENGTH:
            raise UserError(f"the key in {self.api_key_variable} is shorter than {MIN_KEY_LENGTH} characters")
        if not key and not is_loopback(self.host):
            raise UserError(
                f"--host {self.host} is reachable from other machines, and whoever reaches it could replace the "
                f"weights: set a key in {self.api_key_variable} (openssl rand -hex 32), or keep to 127.0.0.1"
            )
        return key or None
