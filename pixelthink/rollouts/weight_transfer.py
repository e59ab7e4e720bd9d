"""Ways to hand a policy's weights to vLLM servers: files on a shared path, or NCCL between GPUs."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pixelthink.rollouts.vllm_client import ServerPool

Weights = Iterable[tuple[str, Tensor]]

SHARD_BYTES = 4 * 2**30
"""Weights are collected up to this size before they go on."""


@dataclass(frozen=True)
class Sent:
    """What went over."""

    bytes: int
    tensors: int


class WeightTransfer(ABC):
    """Hands weights to all servers of a pool, which then answer with them and under their tag."""

    @abstractmethod
    def send(self, weights: Weights, tag: str, pool: ServerPool) -> Sent:
        """Replaces the weights of all servers.

        Args:
            weights: (name, whole tensor), consumed to the end.
            tag: What the servers' answers shall call them.
            pool: Whom to hand them to.
        """

    def follow(self, tag: str, pool: ServerPool) -> None:
        """Notes on another process what the sending one has handed over."""
        pool.tag = tag

    def close(self) -> None:  # noqa: B027
        """Removes what is left behind; nothing by default."""


class FileTransfer(WeightTransfer):
    """Writes safetensors to a path that trainer and servers share, and has the servers reload them.

    A folder of weights appears under its name only when complete. It stays until the next one has been loaded
    everywhere, so that a server that was restarted in between can have it again; the last one goes with this process,
    unless that is killed.

    Args:
        folder: The shared path, the servers' `--weights_folder`.
        dtype: Precision to write; half of float32 is half the file.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder = folder
        self.dtype = dtype
        self._present: list[Path] = []
        weakref.finalize(self, remove, self._present)

    def send(self, weights: Weights, tag: str, pool: ServerPool) -> Sent:
        complete = self._place(tag)
        unfinished = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.folder))
        try:
            unfinished.chmod(0o755)  # the servers may run as somebody else
            sent = self._write(weights, unfinished)
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

    def follow(self, tag: str, pool: ServerPool) -> None:
        pool.tag, pool.weights_folder = tag, self._place(tag)

    def _place(self, tag: str) -> Path:
        return self.folder / tag.replace(":", "-")

    def _write(self, weights: Weights, folder: Path) -> Sent:
        """Writes weights in files of a bounded size, so that one of them is in memory at a time."""
        total = tensors = 0
        converted = ((name, tensor.to("cpu", self.dtype).contiguous()) for name, tensor in weights)
        for number, shard in enumerate(shards(converted)):
            save_file(shard, folder / f"model-{number:05d}.safetensors", metadata={"format": "pt"})
            total += sum(tensor.numel() * tensor.element_size() for tensor in shard.values())
            tensors += len(shard)
        return Sent(total, tensors)

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

    def send(self, weights: Weights, tag: str, pool: ServerPool) -> Sent:
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        if self._group is None:
            self._group = self._meet(pool)
        device = torch.device("cuda", torch.cuda.current_device())
        converted = ((name, tensor.to(device, self.dtype).contiguous()) for name, tensor in weights)
        total = tensors = 0
        pool.each(lambda server: server.post("/start_weight_update"))
        for shard in shards(converted):
            announced = {
                "names": list(shard),
                "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in shard.values()],
                "shapes": [list(tensor.shape) for tensor in shard.values()],
            }
            with ThreadPoolExecutor(1) as beside:  # servers receive while this process sends
                received = beside.submit(
                    pool.each, lambda server, info=announced: server.post("/update_weights", {"update_info": info})
                )
                packed_nccl_broadcast_producer(
                    iterator=iter(shard.items()),
                    group=self._group,
                    src=0,
                    post_iter_func=lambda item: item[1],
                    **_packing(),
                )
                received.result()
            total += sum(tensor.numel() * tensor.element_size() for tensor in shard.values())
            tensors += len(shard)
        pool.each(lambda server: server.post("/finish_weight_update"))
        pool.each(lambda server: server.adopt(tag))
        pool.tag = tag
        return Sent(total, tensors)

    def _meet(self, pool: ServerPool) -> Any:
        """The NCCL group of this process (rank 0) and every worker of every server."""
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        sizes = pool.each(lambda server: int(server.get("/get_world_size")["world_size"]))
        offsets = [1 + sum(sizes[:i]) for i in range(len(sizes))]
        meeting = {"master_address": self.address, "master_port": self.port, "world_size": 1 + sum(sizes)}
        invitations = {
            server.address: {**meeting, "rank_offset": offset, "packed": True, **_worker_packing()}
            for server, offset in zip(pool.servers, offsets, strict=True)
        }
        with ThreadPoolExecutor(1) as beside:  # all meet inside of NCCL's own rendezvous
            joined = beside.submit(
                pool.each,
                lambda server: server.post("/init_weight_transfer_engine", {"init_info": invitations[server.address]}),
            )
            group = trainer_init(meeting)
            joined.result()
        return group


def remove(folders: list[Path]) -> None:
    """Removes folders and empties the list."""
    while folders:
        shutil.rmtree(folders.pop(), ignore_errors=True)


def shards(weights: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Weights in pieces of at most `SHARD_BYTES`, or of one tensor that is larger."""
    shard: dict[str, Tensor] = {}
    held = 0
    for name, tensor in weights:
        size = tensor.numel() * tensor.element_size()
        if shard and held + size > SHARD_BYTES:
            yield shard
            shard, held = {}, 0
        shard[name] = tensor
        held += size
    if shard:
        yield shard


def _packing() -> dict[str, int]:
    """How the sender packs, which is vLLM's default on both sides."""
    from vllm.distributed.weight_transfer import packed_tensor

    return {
        "buffer_size_bytes": packed_tensor.DEFAULT_PACKED_BUFFER_SIZE_BYTES,
        "num_buffers": packed_tensor.DEFAULT_PACKED_NUM_BUFFERS,
    }


def _worker_packing() -> dict[str, int]:
    """The same, as the receivers are told."""
    return {f"packed_{name}": value for name, value in _packing().items()}
