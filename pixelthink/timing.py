"""Wall-clock time of what a device does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def now(device: torch.device | str = "cpu") -> float:
    """Wall-clock seconds, read once the device has done all that was asked of it; only differences mean something."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """Measures the phases of a step.

    Attributes:
        seconds: Wall-clock seconds by phase.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Measures what is done inside, under the name of the phase."""
        started = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - started
