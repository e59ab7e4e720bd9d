"""When a rollout engine with weights of its own gets the policy's, how that is proved, and curves of both."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from pixelthink.evaluation.policy_module import PolicyModule
from pixelthink.rollouts.weight_sync import SyncConfig


class RolloutWeightSync(Callback):
    """Sets how an engine such as `VLLMEngine` follows the policy, and logs what that takes.

    The syncing itself stands in `PolicyModule.sample`, so a run without this callback syncs before every rollout that
    needs newer weights and proves it too, with the defaults below: leaving it out can not leave weights behind.

    Args:
        every_n_steps: Optimizer steps after which a training rollout needs newer weights; evaluation always uses the
            current ones.
        prove: After each sync and each waking, score one kept image rollout in engine and policy and compare; a
            difference over the limit stops the run.
        limit: Largest mean |difference| of log-probabilities that passes; None goes by the engine's precision.
        proof_tokens: Most tokens of the rollout that is compared.
    """

    def __init__(
        self, every_n_steps: int = 1, prove: bool = True, limit: float | None = None, proof_tokens: int = 24
    ) -> None:
        self.config = SyncConfig(every_n_steps, prove, limit, proof_tokens)
        self._logged = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if isinstance(pl_module, PolicyModule):
            pl_module.sync_config = self.config

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        sync = pl_module.weight_sync if isinstance(pl_module, PolicyModule) else None
        if sync is None or sync.report is None or sync.syncs == self._logged:
            return
        self._logged = sync.syncs
        pl_module.log("sync/seconds", sync.report.seconds)
        pl_module.log("sync/bytes", float(sync.report.bytes))
        if sync.proof is not None:
            pl_module.log("sync/proof_seconds", sync.proof.seconds)
            pl_module.log("sync/difference", sync.proof.difference)
