"""A clock that waits for the device."""

from __future__ import annotations

import time

import torch


def now(device: torch.device | str = "cpu") -> float:
    """Wall-clock seconds, read once the device has done all that was asked of it; only differences mean something."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
