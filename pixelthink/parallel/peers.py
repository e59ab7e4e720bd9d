"""Ends all processes of a run within seconds when one of them fails, with one line that says so.

A process that was killed leaves the others waiting in a collective operation. gloo raises at once and NCCL after
minutes, both with a page of trace. So each process holds a TCP connection to the first one. The kernel closes it when
the process ends for any reason, and keep-alive probes find a machine that is gone within half a minute. A process that
has finished says so first. torchrun supervises only processes that it started itself, and Lightning starts these.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection, wait

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ParallelStrategy

FINISHED = -1
"""Message of a process that has finished. Any other message is the rank of a process that has failed."""
REPORT_SECONDS = 0.5
"""Time that a process has for ending with an error of its own after another one said that it ends with an error. One
that ended without a word was killed, which is reported at once: Lightning kills the others within five seconds."""
EXIT_SECONDS = 5.0
"""Time after which a process that should end is ended."""
CONNECT_SECONDS = 300.0
"""Time that processes have for connecting."""
SECRET_BYTES = 16


class PeerWatch(Callback):
    """Ends this process when another process of the run has failed. `python -m pixelthink` adds it to each run.

    It does nothing in a run of one process.
    """

    def __init__(self) -> None:
        self._connections: dict[int, Connection] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Connects to the other processes and listens in a thread."""
        strategy = trainer.strategy
        if self._connections or not isinstance(strategy, ParallelStrategy) or strategy.world_size == 1:
            return
        self._rank, self._local_rank, self._count = strategy.global_rank, strategy.local_rank, strategy.world_size
        self._failed_rank: int | None = None
        self._has_failed, self._is_ending, self._is_reported = (threading.Event() for _ in range(3))
        self._connections = connect(strategy)
        threading.Thread(target=self._listen, args=(self._connections,), name="peer-watch", daemon=True).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tells the other processes that this one has finished."""
        if self._connections:
            self._is_ending.set()
        for connection in self._connections.values():
            send(connection, FINISHED)
        self._connections = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A run that all processes end early has finished."""
        if isinstance(exception, SystemExit):
            self.teardown(trainer, pl_module, "")

    def peer_has_failed(self, timeout: float) -> bool:
        """Returns whether another process has failed, so that an error of this one is a consequence; reports it then.

        Args:
            timeout: Seconds to wait for the news.
        """
        if not self._connections or not self._has_failed.wait(timeout):
            return False
        self._report()
        return True

    def end(self) -> None:
        """Says that this process ends with an error of its own; it is ended by force if others keep it waiting."""
        if self._connections:
            self._is_ending.set()
            for connection in self._connections.values():
                send(connection, self._rank)
            timer = threading.Timer(EXIT_SECONDS, os._exit, (2,))
            timer.daemon = True
            timer.start()

    def _listen(self, connections: dict[int, Connection]) -> None:
        """Waits until all others have finished or one has failed; runs in the thread."""
        ranks = {connection: rank for rank, connection in connections.items()}
        while ranks:
            for connection in wait(list(ranks)):
                assert isinstance(connection, Connection)
                grace = REPORT_SECONDS
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    message, grace = ranks[connection], 0.0
                if message != FINISHED:
                    self._end_after(message, connections, grace)
                    return
                del ranks[connection]

    def _end_after(self, failed_rank: int, connections: dict[int, Connection], grace: float) -> None:
        """Passes the news on, reports it after `grace` seconds, and ends this process unless it ends by itself."""
        self._failed_rank = failed_rank
        self._has_failed.set()
        for rank, connection in connections.items():
            if rank != failed_rank:
                send(connection, failed_rank)
        if not self._is_ending.wait(grace):
            self._report()
        if not self._is_ending.wait(EXIT_SECONDS):
            os._exit(1)

    def _report(self) -> None:
        """Prints which process has failed, once on each machine."""
        first_has_failed = self._failed_rank == self._rank - self._local_rank  # the first process of this machine
        if self._local_rank == (1 if first_has_failed else 0) and not self._is_reported.is_set():
            self._is_reported.set()
            print(
                f"pixelthink: error: process {self._failed_rank} of {self._count} has ended before the others (killed, "
                "out of memory, or by the error that it printed), so all end; go on from the last checkpoint with "
                "--ckpt_path last",
                file=sys.stderr,
                flush=True,
            )


def connect(strategy: ParallelStrategy) -> dict[int, Connection]:
    """Connects the first process to each other one; returns this process's connections by rank.

    Args:
        strategy: Has set up the processes' communication, over which port and secret are shared.
    """
    assert strategy.cluster_environment is not None
    address = strategy.cluster_environment.main_address
    server = open_server(address, strategy.world_size) if strategy.global_rank == 0 else None
    port, secret = strategy.broadcast((server.getsockname()[1] if server else 0, secrets.token_bytes(SECRET_BYTES)))
    if server is None:
        connection = socket.create_connection((address, port), timeout=CONNECT_SECONDS)
        connection.sendall(secret + strategy.global_rank.to_bytes(4, "big"))
        return {0: keep_alive(connection)}
    found: dict[int, Connection] = {}
    with server:
        while len(found) < strategy.world_size - 1:
            connection, _ = server.accept()
            connection.settimeout(CONNECT_SECONDS)
            greeting = connection.recv(SECRET_BYTES + 4, socket.MSG_WAITALL)
            if greeting[:SECRET_BYTES] == secret:
                found[int.from_bytes(greeting[SECRET_BYTES:], "big")] = keep_alive(connection)
    return found


def open_server(address: str, connections: int) -> socket.socket:
    """Listens on a free port: of the loopback where the run's main address is there, else of all networks."""
    try:
        is_local = socket.gethostbyname(address).startswith("127.")
    except OSError:
        is_local = False
    if is_local or not socket.has_dualstack_ipv6():
        server = socket.create_server((address if is_local else "", 0), backlog=connections)
    else:
        server = socket.create_server(("", 0), family=socket.AF_INET6, backlog=connections, dualstack_ipv6=True)
    server.settimeout(CONNECT_SECONDS)
    return server


def keep_alive(connection: socket.socket) -> Connection:
    """Has the kernel probe the other machine: after 10 silent seconds, four times in 20 s."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    return Connection(connection.detach())


def send(connection: Connection, message: int) -> None:
    """Sends a message. The thread will notice if the other side is gone."""
    with suppress(OSError):
        connection.send(message)
