"""What processes exchange. Every function also works where there is one process and nobody set up communication."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

Value = TypeVar("Value")


def is_distributed() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def process_rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def barrier() -> None:
    """Waits until all processes have come here."""
    if is_distributed():
        dist.barrier()


def broadcast_object(value: Value) -> Value:
    """The value of process 0, on every process; anything that can be pickled."""
    values = [value]
    if is_distributed():
        dist.broadcast_object_list(values)
    return values[0]


def all_gather_object(value: Value) -> list[Value]:
    """The values of all processes in the order of their ranks, on every process; anything that can be pickled."""
    values = [value]
    if is_distributed():
        values = values * dist.get_world_size()
        dist.all_gather_object(values, value)
    return values


def full_tensor(value: Tensor) -> Tensor:
    """A tensor that may be sharded, whole and without gradient. All processes call it together where it is sharded."""
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value
