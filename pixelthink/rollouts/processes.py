"""The processes of a run, for code that also works where there is one and nobody set up communication."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def several() -> bool:
    """Whether there is more than one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Number of this one."""
    return dist.get_rank() if several() else 0


def wait_for_all() -> None:
    """Waits until all have come here."""
    if several():
        dist.barrier()


def first_ones(value: T) -> T:
    """The first process's value, on every process."""
    values = [value]
    if several():
        dist.broadcast_object_list(values)
    return values[0]


def everyones(value: T) -> list[T]:
    """The values of all processes, in order, on every process."""
    values = [value]
    if several():
        values = values * dist.get_world_size()
        dist.all_gather_object(values, value)
    return values
