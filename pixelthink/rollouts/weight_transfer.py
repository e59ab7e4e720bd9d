"""Ways to hand a policy's weights to vLLM servers: files on a shared path, or NCCL between GPUs."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pixelthink.errors import FileError
from pixelthink.files.checkpoints import write_failure
from pixelthink.rollouts.vllm_client import ServerPool

Weights = Iterable[tuple[str, Tensor]]
SHARD_BYTES = 4 * 2**30
"""Weights are collected up to this size and sent together."""


class CountedWeights:
    """Iterates over (name, tensor) pairs and counts `tensors` and `bytes` of those that it has given so far."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.bytes = 0
        self.tensors = 0

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.weights:
            self.bytes += tensor.nbytes
            self.tensors += 1
            yield name, tensor


class WeightTransfer(ABC):
    """Hands weights to all servers of a pool. Their answers then carry the version tag of these weights."""

    @abstractmethod
    def send(self, weights: Weights, tag: str, pool: ServerPool) -> CountedWeights:
        """Replaces the weights of all servers.

        Args:
            weights: (name, unsharded tensor), consumed to the end.
            tag: Version tag.
            pool: The servers.

        Returns:
            The weights as they were sent, counted.
        """

    def follow(self, tag: str, pool: ServerPool) -> None:
        """Notes on another process which weights the first process has sent."""
        pool.tag = tag

    def close(self) -> None:  # noqa: B027
        """Removes temporary files; nothing by default."""


class FileTransfer(WeightTransfer):
    """Writes safetensors files to a path that trainer and servers share, and has the servers load them.

    The folder gets its name only when it is complete. It stays until the next weights have been loaded everywhere, so
    that a server that is restarted in between can load it again. The last one is removed when this process ends,
    unless the process is killed.

    Args:
        folder: The shared path, the servers' `--weights_folder`.
        dtype: Precision to write.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder = folder
        self.dtype = dtype
        self._present: list[Path] = []
        weakref.finalize(self, remove, self._present)

    def send(self, weights: Weights, tag: str, pool: ServerPool) -> CountedWeights:
        sent = CountedWeights((name, tensor.to("cpu", self.dtype).contiguous()) for name, tensor in weights)
        complete = self._path(tag)
        unfinished = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.folder))
        try:
            unfinished.chmod(0o755)  # the servers may run as another user
            for number, shard in enumerate(shards(sent)):
                self._write(shard, unfinished / f"model-{number:05d}.safetensors")
            unfinished.rename(complete)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        before = list(self._present)
        self._present.append(complete)
        pool.load(complete, tag)
        remove(before)
        self._present[:] = [complete]
        return sent

    def _write(self, shard: dict[str, Tensor], path: Path) -> None:
        try:
            save_file(shard, path, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            reason = write_failure(error, self.folder)
            raise FileError(f"rollout.weights_folder: cannot write weights to {self.folder}: {reason}") from error

    def follow(self, tag: str, pool: ServerPool) -> None:
        pool.tag, pool.weights_folder = tag, self._path(tag)

    def _path(self, tag: str) -> Path:
        return self.folder / tag.replace(":", "-")

    def close(self) -> None:
        remove(self._present)


class NcclTransfer(WeightTransfer):
    """Broadcasts weights from this process's GPU to those of all servers, by vLLM's own transfer engine.

    Written against vLLM 0.32's `vllm.distributed.weight_transfer`, and NOT run on the machine that tested this
    package, which has no GPU. Servers are started with `--nccl true`.

    Args:
        address: This machine's address, as the servers reach it.
        port: A free port of this machine, on which the group meets.
        dtype: Precision to send.
    """

    def __init__(self, address: str, port: int, dtype: torch.dtype) -> None:
        self.address = address
        self.port = port
        self.dtype = dtype
        self._group: Any = None

    def send(self, weights: Weights, tag: str, pool: ServerPool) -> CountedWeights:
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        if self._group is None:
            self._group = self._join(pool)
        device = torch.device("cuda", torch.cuda.current_device())
        sent = CountedWeights((name, tensor.to(device, self.dtype).contiguous()) for name, tensor in weights)
        pool.each(lambda server: server.post("/start_weight_update"))
        for shard in shards(sent):
            update = {
                "names": list(shard),
                "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in shard.values()],
                "shapes": [list(tensor.shape) for tensor in shard.values()],
            }
            with ThreadPoolExecutor(1) as thread:  # servers receive while this process sends
                received = thread.submit(
                    pool.each, lambda server, info=update: server.post("/update_weights", {"update_info": info})
                )
                packed_nccl_broadcast_producer(
                    iterator=iter(shard.items()),
                    group=self._group,
                    src=0,
                    post_iter_func=lambda item: item[1],
                    **packing(),
                )
                received.result()
        pool.each(lambda server: server.post("/finish_weight_update"))
        pool.each(lambda server: server.set_version(tag))
        pool.tag = tag
        return sent

    def _join(self, pool: ServerPool) -> Any:
        """Returns the NCCL group of this process (rank 0) and every worker of every server."""
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        sizes = pool.each(lambda server: int(server.get("/get_world_size")["world_size"]))
        group = {"master_address": self.address, "master_port": self.port, "world_size": 1 + sum(sizes)}
        worker_packing = {f"packed_{name}": value for name, value in packing().items()}
        bodies = {
            server.address: {**group, "rank_offset": 1 + sum(sizes[:i]), "packed": True, **worker_packing}
            for i, server in enumerate(pool.servers)
        }
        with ThreadPoolExecutor(1) as thread:  # NCCL waits for all of them
            joined = thread.submit(
                pool.each,
                lambda server: server.post("/init_weight_transfer_engine", {"init_info": bodies[server.address]}),
            )
            communicator = trainer_init(group)
            joined.result()
        return communicator


def remove(folders: list[Path]) -> None:
    """Removes folders and empties the list."""
    while folders:
        shutil.rmtree(folders.pop(), ignore_errors=True)


def shards(weights: Weights) -> Iterator[dict[str, Tensor]]:
    """Collects weights in pieces of at most `SHARD_BYTES`; a larger tensor is a piece of its own."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights:
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    if shard:
        yield shard


def packing() -> dict[str, int]:
    """Returns vLLM's default buffers, which sender and receivers have to share."""
    from vllm.distributed.weight_transfer import packed_tensor

    return {
        "buffer_size_bytes": packed_tensor.DEFAULT_PACKED_BUFFER_SIZE_BYTES,
        "num_buffers": packed_tensor.DEFAULT_PACKED_NUM_BUFFERS,
    }
