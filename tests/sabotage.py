"""Parts that do what no part may, for tests that watch whether it is found; private names: no registry lists them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from pixelthink.rollouts.base import SyncReport
from pixelthink.rollouts.vllm_server import VLLMServerEngine


class _OtherWeights(VLLMServerEngine):
    """Hands over other weights than it is given: the policy's plus noise."""

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int, adapter: Path | None = None) -> SyncReport:
        noisy = ((name, weight + 0.3 * torch.randn_like(weight)) for name, weight in weights)
        return super().sync(noisy, version, adapter)
