"""Communication between processes. Every function also works in a run of one process without a process group."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

Value = TypeVar("Value")


def is_distributed() -> bool:
    """Returns whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def process_rank() -> int:
    """Returns the rank of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def barrier() -> None:
    """Waits until all processes have called it."""
    if is_distributed():
        dist.barrier()


def broadcast_object(value: Value) -> Value:
    """Returns the value of process 0 on every process; anything that can be pickled."""
    values = [value]
    if is_distributed():
        dist.broadcast_object_list(values)
    return values[0]


def all_gather_object(value: Value) -> list[Value]:
    """Returns the values of all processes, in the order of their ranks; anything that can be pickled."""
    values = [value]
    if is_distributed():
        values = values * dist.get_world_size()
        dist.all_gather_object(values, value)
    return values


def full_tensor(value: Tensor) -> Tensor:
    """Returns a tensor without gradient, unsharded. All processes have to call it together where it is sharded."""
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value
