"""Hands the policy's weights to a rollout engine with weights of its own before each training rollout."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from pixelthink.evaluation.interface import SegmentationModule
from pixelthink.rollouts.synced_engine import SyncConfig
from pixelthink.types import PromptBatch


class RolloutWeightSync(Callback):
    """Hands weights to an engine such as `VLLMEngine` before each training rollout, checks parity, and logs both.

    Without this callback the engine gets its weights too, with the defaults below, when it is asked to sample: leaving
    the callback out cannot leave weights behind. Only the curves are missing then. Evaluation always samples from the
    current weights.

    Args:
        every_n_steps: Optimizer steps after which a training rollout needs newer weights.
        parity_check: After each sync and each waking, score one kept image rollout in engine and policy and compare; a
            difference over the limit stops the run.
        limit: Largest mean |difference| of log-probabilities that passes; None goes by the engine's precision.
        parity_tokens: Most tokens of the rollout that is compared.
    """

    def __init__(
        self, every_n_steps: int = 1, parity_check: bool = True, limit: float | None = None, parity_tokens: int = 24
    ) -> None:
        self.config = SyncConfig(every_n_steps, parity_check, limit, parity_tokens)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        if not isinstance(pl_module, SegmentationModule):
            return
        handover = pl_module.answerer.engine.hand_over(batch)
        if handover is None:
            return
        curves: dict[str, Any] = {}
        if handover.sync is not None:
            curves |= {"sync/seconds": handover.sync.seconds, "sync/bytes": float(handover.sync.bytes)}
        if handover.parity is not None:
            curves["sync/parity_seconds"] = handover.parity.seconds
            curves["sync/parity_difference"] = handover.parity.difference
        pl_module.log_dict(curves)
