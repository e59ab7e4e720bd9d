"""Serves a policy for rollouts, ratings and judges: vLLM on a private socket, an authenticating front before it.

    PIXELTHINK_API_KEY=$(openssl rand -hex 32) python -m pixelthink.serving --model runs/tiny/policy \
        --weights_folder /shared/weights --host 0.0.0.0 --port 8000

Exit code 0 after Ctrl-C or SIGTERM; 1 where vLLM ended by itself; 2 with one line on standard error where something is
wrong with the call.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from pixelthink.serving.options import ServeOptions

if TYPE_CHECKING:
    import uvicorn

    from pixelthink.serving.vllm_process import VLLMProcess

HOW_TO_INSTALL = "it comes with vLLM: pip install 'pixelthink[vllm]' on a GPU machine, make vllm on a CPU one"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        options = build_parser().parse_args(arguments).as_dict()
        options.pop("config")
        return serve(ServeOptions(**options))
    except (ArgumentError, ImportError, OSError, ValueError) as error:
        print(f"pixelthink.serving: error: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 2


def build_parser() -> ArgumentParser:
    """The options."""
    summary = (__doc__ or "").split("\n")[0]
    parser = ArgumentParser(prog="python -m pixelthink.serving", description=summary, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_class_arguments(ServeOptions)
    return parser


def serve(options: ServeOptions) -> int:
    """Serves until told to stop; returns the exit code.

    Raises:
        OSError: the address is taken, or vLLM does not start.
        ValueError: the key does not suffice for the address.
    """
    key = options.checked_key(os.environ.get(options.api_key_variable))
    with bound(options) as listening, tempfile.TemporaryDirectory(prefix="pixelthink-") as private:
        return run(options, key, listening, Path(private) / "vllm.sock")


def bound(options: ServeOptions) -> socket.socket:
    """A socket bound to the front's address; nothing is served before vLLM is up."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((options.host.strip("[]"), options.port))
    except OSError as error:
        listening.close()
        raise OSError(f"cannot listen on {options.host} port {options.port}: {error.strerror}") from None
    return listening


def run(options: ServeOptions, key: str | None, listening: socket.socket, vllm_socket: Path) -> int:
    """Starts vLLM, then the front on a bound socket; ends when either does."""
    try:
        import uvicorn

        from pixelthink.serving.front import Front
        from pixelthink.serving.rules import rules
        from pixelthink.serving.vllm_process import VLLMProcess
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed; {HOW_TO_INSTALL}") from None

    folder = None if options.weights_folder is None else Path(options.weights_folder)
    front = Front(vllm_socket, rules(folder, options.nccl), key, options.max_body_mb * 2**20)
    server = uvicorn.Server(
        uvicorn.Config(
            front.application(),
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            ssl_certfile=options.ssl_certfile,
            ssl_keyfile=options.ssl_keyfile,
        )
    )
    with VLLMProcess(options, vllm_socket) as vllm:
        vllm.wait_until_ready()
        threading.Thread(target=_stop_after, args=(vllm, server), daemon=True).start()
        scheme = "http" if options.ssl_certfile is None else "https"
        host, port = listening.getsockname()[:2]
        guard = "with a key" if key else "on loopback, without a key"
        print(f"pixelthink.serving: {options.model} at {scheme}://{host}:{port}, {guard}", flush=True)
        server.run(sockets=[listening])
        ended = vllm.process.poll()
    if ended is not None:
        print(f"pixelthink.serving: error: vLLM ended with status {ended}", file=sys.stderr)
    return 0 if ended is None else 1


def _stop_after(vllm: VLLMProcess, server: uvicorn.Server) -> None:
    """Stops the front once vLLM has ended."""
    vllm.process.wait()
    server.should_exit = True


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # while vLLM starts; then uvicorn sees to it
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(0)
