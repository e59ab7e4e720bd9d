"""Evaluation of any policy, with nothing of training: no reward, no optimizer, no reference."""

from __future__ import annotations

from typing import Any

from jsonargparse import lazy_instance
from lightning.pytorch.callbacks import Callback
from torch import nn

from pixelthink.answering.answerer import Answerer
from pixelthink.callbacks.lifecycle import Lifecycle
from pixelthink.evaluation.config import EvaluationConfig
from pixelthink.evaluation.evaluator import Evaluator
from pixelthink.evaluation.interface import SegmentationModule
from pixelthink.judges.base import Judge
from pixelthink.parallel.strategy import shard_for
from pixelthink.policies.base import PolicyBackbone
from pixelthink.rollouts.base import RolloutEngine
from pixelthink.rollouts.hf import HFEngine
from pixelthink.segmenters.base import Segmenter
from pixelthink.segmenters.grabcut import GrabCut
from pixelthink.training.learner import check_checkpoint, checkpointed
from pixelthink.types import Prediction, PromptBatch


class EvaluationModule(SegmentationModule):
    """Answers, segments and measures: for `validate`, `test` and `predict`.

    Weights come in Hugging Face format from `policy`, or with `--ckpt_path` from a checkpoint of training.

    Args:
        policy: Model family and weights.
        rollout: Engine that samples responses.
        segmenter: Turns answers into masks.
        evaluation: How answers are measured.
        judge: Rates the reasoning in `test` and `validate`; None asks nobody.
    """

    def __init__(
        self,
        policy: PolicyBackbone,
        rollout: RolloutEngine = lazy_instance(HFEngine),
        segmenter: Segmenter = lazy_instance(GrabCut),
        evaluation: EvaluationConfig = EvaluationConfig(),
        judge: Judge | None = None,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints leave weights out; on_load_checkpoint is strict
        self.answerer = Answerer(policy, rollout, segmenter)
        self.evaluator = Evaluator(evaluation, judge)
        self.policy: nn.Module | None = None

    def configure_callbacks(self) -> list[Callback]:
        return [Lifecycle(self)]

    def configure_model(self) -> None:
        """Loads the policy; Lightning may call this more than once."""
        if self.policy is None:
            self.policy = self.answerer.load_policy()
            shard_for(self.trainer.strategy, [self.policy])

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        return self.evaluator.step(self.answerer, batch)

    test_step = validation_step  # type: ignore[assignment]

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:
        return self.evaluator.step(self.answerer, batch, measuring=False)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.policy is not None
        check_checkpoint(checkpoint, checkpointed(self.state_dict(), self.answerer.backbone, self.policy))
