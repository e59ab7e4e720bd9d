"""Processes notice within seconds that one of them is gone, and end with one line that says so.

A process that was killed leaves the others waiting for it in a collective operation: gloo notices at once and NCCL
after minutes, both with a page of trace. So each process holds a TCP connection to the first one. The kernel closes it
when the process ends, whatever ended it; keep-alive probes find a machine that is gone within half a minute. A process
that comes to its end says goodbye first.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import sys
import threading

from lightning.pytorch.strategies import ParallelStrategy, Strategy

GOODBYE = -1
"""What a process sends when it has come to its end; any other number is a process that is gone."""
MESSAGE = 4
"""Bytes of a message, which is a number."""
PATIENCE = 0.5
"""Seconds that a process may take to end with an error of its own before it is told of another's end."""
GRACE = 5.0
"""Seconds after which a process that knows of another's end is ended."""
HELLO_TIMEOUT = 300.0
"""Seconds that processes may take to connect."""

_watch: PeerWatch | None = None


class PeerWatch:
    """Watches over the other processes of a run; a thread that ends this process when one of them is gone.

    Args:
        strategy: Has started the processes' communication.
    """

    def __init__(self, strategy: ParallelStrategy) -> None:
        assert strategy.cluster_environment is not None
        self.rank, self.count = strategy.global_rank, strategy.world_size
        self.local_rank = strategy.local_rank
        self.lost: int | None = None
        self._is_lost = threading.Event()
        self._is_over = threading.Event()
        self._is_reported = threading.Event()
        self.connections = self._connect(strategy, strategy.cluster_environment.main_address)
        self._thread = threading.Thread(target=self._listen, name="peer-watch", daemon=True)
        self._thread.start()

    def _connect(self, strategy: ParallelStrategy, address: str) -> dict[int, socket.socket]:
        """Connections by process: the first process has one to each other, which has one to the first."""
        secret = secrets.token_bytes(16)
        server = None
        if self.rank == 0:
            server = open_server(address, self.count)
        port, secret = strategy.broadcast((server.getsockname()[1] if server else 0, secret))
        found: dict[int, socket.socket] = {}
        if server is None:
            found[0] = socket.create_connection((address, port), timeout=HELLO_TIMEOUT)
            found[0].sendall(secret + number(self.rank))
        while server is not None and len(found) < self.count - 1:
            connection, _ = server.accept()
            connection.settimeout(HELLO_TIMEOUT)
            hello = connection.recv(len(secret) + MESSAGE, socket.MSG_WAITALL)
            if hello[: len(secret)] == secret:
                found[int.from_bytes(hello[len(secret) :], "big", signed=True)] = connection
        if server is not None:
            server.close()
        for connection in found.values():
            connection.settimeout(None)
            keep_alive(connection)
        return found

    def _listen(self) -> None:
        """What the thread does: waits until all others have said goodbye, or one is gone."""
        with selectors.DefaultSelector() as selector:
            for rank, connection in self.connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    message = read(self.connections[key.data])
                    if message == GOODBYE:
                        selector.unregister(key.fileobj)
                    else:
                        self._end_for(key.data if message is None else message)
                        return

    def _end_for(self, rank: int) -> None:
        """Tells the others that a process is gone, and ends this one if it does not end by itself."""
        self.lost = rank
        self._is_lost.set()
        for other, connection in self.connections.items():
            if other != rank:
                send(connection, rank)
        if not self._is_over.wait(PATIENCE):
            self.report()
        if not self._is_over.wait(GRACE):
            os._exit(1)

    def report(self) -> None:
        """Prints what happened, once on each machine."""
        gone_here = self.lost == self.rank - self.local_rank  # the first process of this machine
        if self.local_rank == (1 if gone_here else 0) and not self._is_reported.is_set():
            self._is_reported.set()
            print(
                f"pixelthink: error: process {self.lost} of {self.count} has ended before the others (killed, out of "
                "memory, or by the error that it printed), so all end; go on from the last checkpoint with "
                "--ckpt_path last",
                file=sys.stderr,
                flush=True,
            )

    def knows_of_a_loss(self, seconds: float) -> bool:
        """Whether another process is gone, as is found out within some seconds."""
        return self._is_lost.wait(seconds)

    def end_alone(self) -> None:
        """This process ends by itself, with an error of its own, and is not kept from it by others that wait."""
        self._is_over.set()
        timer = threading.Timer(GRACE, os._exit, (2,))
        timer.daemon = True
        timer.start()

    def shutdown(self) -> None:
        """This process has come to its end."""
        self._is_over.set()
        for connection in self.connections.values():
            send(connection, GOODBYE)


def watch_peers(strategy: Strategy) -> None:
    """Starts to watch over the other processes, where there are others and nobody does so yet."""
    global _watch
    if _watch is None and isinstance(strategy, ParallelStrategy) and strategy.world_size > 1:
        _watch = PeerWatch(strategy)


def leave_peers() -> None:
    """Says goodbye to the other processes."""
    global _watch
    if _watch is not None:
        _watch.shutdown()
        _watch = None


def ended_by_a_peer(seconds: float) -> bool:
    """Whether an error of this process is the consequence of another's end, which then has been reported.

    Args:
        seconds: How long to wait for that news.
    """
    if _watch is None or not _watch.knows_of_a_loss(seconds):
        return False
    _watch.report()
    return True


def end_alone() -> None:
    """This process ends with an error of its own; the others will notice."""
    if _watch is not None:
        _watch.end_alone()


def open_server(address: str, connections: int) -> socket.socket:
    """A listening socket on a free port: of the loopback where the run stays on it, else of all networks."""
    try:
        stays = socket.gethostbyname(address).startswith("127.")
    except OSError:
        stays = False
    if stays or not socket.has_dualstack_ipv6():
        server = socket.create_server((address if stays else "", 0), backlog=connections)
    else:
        server = socket.create_server(("", 0), family=socket.AF_INET6, backlog=connections, dualstack_ipv6=True)
    server.settimeout(HELLO_TIMEOUT)
    return server


def number(value: int) -> bytes:
    """A message."""
    return value.to_bytes(MESSAGE, "big", signed=True)


def read(connection: socket.socket) -> int | None:
    """The next message; None where the other side is gone."""
    try:
        data = connection.recv(MESSAGE, socket.MSG_WAITALL)
    except OSError:
        return None
    return int.from_bytes(data, "big", signed=True) if len(data) == MESSAGE else None


def send(connection: socket.socket, value: int) -> None:
    """Sends a message; that the other side may be gone is for the thread to notice."""
    try:
        connection.sendall(number(value))
    except OSError:
        return


def keep_alive(connection: socket.socket) -> None:
    """Has the kernel ask the other machine, after 10 silent seconds, whether it is there: four times in 20 s."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
