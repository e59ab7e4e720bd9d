"""Writes checkpoints as verl does: every process its part of a tiny model, by torch's own sharding.

python -m tests.sharded_checkpoints FOLDER RANK WORLD PORT
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.support import ROOT

MODEL = "huggingface"


def tiny(folder: Path) -> Any:
    """The model that lies in a folder, in bfloat16, with noise that gives every weight bits of its own."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)


def write(folder: Path, rank: int, world: int) -> None:
    """Every layout, each in a folder of its own."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.fsdp._shard_utils import _create_chunk_dtensor, _create_chunk_sharded_tensor
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    plain = tiny(folder / MODEL).state_dict()
    line = init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",))
    sharded = tiny(folder / MODEL)
    fully_shard(sharded, mesh=line)
    layouts: dict[str, dict[str, Any]] = {
        "fsdp2": sharded.state_dict(),
        # what FSDP 1 calls for its sharded state dict; the class itself refuses to run without an accelerator
        "fsdp1_dtensor": {n: _create_chunk_dtensor(t, rank, line) for n, t in plain.items()},
        "fsdp1_sharded": {
            n: _create_chunk_sharded_tensor(t, rank, world, 1, dist.group.WORLD) for n, t in plain.items()
        },
        "columns": {n: distribute_tensor(t, line, [Shard(t.ndim - 1)]) for n, t in plain.items()},
        "plain": plain,
    }
    if world == 4:
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("ddp", "fsdp"))
        hybrid = tiny(folder / MODEL)
        fully_shard(hybrid, mesh=grid)
        layouts = {"hybrid": hybrid.state_dict()}
        layouts["twice"] = {n: distribute_tensor(t, grid, [Shard(0), Shard(t.ndim - 1)]) for n, t in plain.items()}
        layouts["replicated"] = {n: distribute_tensor(t, grid, [Replicate(), Replicate()]) for n, t in plain.items()}
    for name, state in layouts.items():
        target = folder / f"{name}_{world}"
        target.mkdir(exist_ok=True)
        torch.save(state, target / f"model_world_size_{world}_rank_{rank}.pt")


def launch(folder: Path, world: int) -> None:
    """Starts the processes and waits for them."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.sharded_checkpoints", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world), port],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]


def bits(tensor: Tensor) -> bytes:
    """The content of a tensor."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    where, number, size, address = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{address}", rank=int(number), world_size=int(size))
    write(Path(where), int(number), int(size))
    dist.destroy_process_group()
