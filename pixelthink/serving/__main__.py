"""Serves a policy for rollouts, ratings and judges: vLLM on a private socket, an authenticating front before it.

    PIXELTHINK_API_KEY=$(openssl rand -hex 32) python -m pixelthink.serving --model runs/tiny/policy \
        --weights_folder /shared/weights --host 0.0.0.0 --port 8000

The exit code is 0 after Ctrl-C or SIGTERM, 1 if vLLM ended by itself, and 2 with one line on standard error if an
option is wrong.
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

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from pixelthink.errors import MissingPackageError, UserError
from pixelthink.rollouts.vllm_requests import HOW_TO_INSTALL_VLLM
from pixelthink.serving.options import ServeOptions


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    summary = (__doc__ or "").split("\n")[0]
    parser = ArgumentParser(prog="python -m pixelthink.serving", description=summary, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_class_arguments(ServeOptions)
    try:
        options = parser.parse_args(arguments).as_dict()
        options.pop("config")
        return serve(ServeOptions(**options))
    except (ArgumentError, UserError) as error:
        print(f"pixelthink.serving: error: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 2


def serve(options: ServeOptions) -> int:
    """Starts vLLM and then the front; ends when either does and returns the exit code.

    Raises:
        UserError: the key is missing, the address is taken, a certificate cannot be read, or vLLM does not start.
        MissingPackageError: vLLM is not installed.
    """
    key = options.checked_key(os.environ.get(options.api_key_variable))
    with listening_socket(options) as listening, tempfile.TemporaryDirectory(prefix="pixelthink-") as private:
        try:
            import uvicorn

            from pixelthink.serving.front import Front
            from pixelthink.serving.rules import rules
            from pixelthink.serving.vllm_process import VLLMProcess
        except ModuleNotFoundError as error:
            raise MissingPackageError(f"{error.name} comes with vLLM: {HOW_TO_INSTALL_VLLM}") from None
        vllm_socket = Path(private) / "vllm.sock"
        folder = None if options.weights_folder is None else Path(options.weights_folder)
        front = Front(vllm_socket, rules(folder, options.nccl), key, options.max_body_mb * 2**20)
        config = uvicorn.Config(
            front.application(),
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            ssl_certfile=options.ssl_certfile,
            ssl_keyfile=options.ssl_keyfile,
        )
        try:
            config.load()
        except OSError as error:
            raise UserError(f"--ssl_certfile {options.ssl_certfile}, --ssl_keyfile: {error}") from error
        server = uvicorn.Server(config)

        def stop_front_after_vllm() -> None:
            vllm.process.wait()
            server.should_exit = True

        with VLLMProcess(options, vllm_socket) as vllm:
            vllm.wait_until_ready()
            threading.Thread(target=stop_front_after_vllm, daemon=True).start()
            scheme = "http" if options.ssl_certfile is None else "https"
            host, port = listening.getsockname()[:2]
            guard = "with a key" if key else "on loopback, without a key"
            print(f"pixelthink.serving: {options.model} at {scheme}://{host}:{port}, {guard}", flush=True)
            server.run(sockets=[listening])
            status = vllm.process.poll()
    if status is not None:
        print(f"pixelthink.serving: error: vLLM ended with status {status}", file=sys.stderr)
    return 0 if status is None else 1


def listening_socket(options: ServeOptions) -> socket.socket:
    """Binds a socket to the front's address, before vLLM takes its time to start."""
    listening = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((options.host.strip("[]"), options.port))
    except OSError as error:
        listening.close()
        raise UserError(f"cannot listen on {options.host} port {options.port}: {error.strerror}") from None
    return listening


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # while vLLM starts; uvicorn handles it then
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(0)
