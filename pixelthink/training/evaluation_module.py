"""Evaluation of any policy, with nothing of training: no reward, no optimizer, no reference."""

from __future__ import annotations

from jsonargparse import lazy_instance

from pixelthink.evaluation.policy_module import EvaluationConfig, PolicyModule
from pixelthink.policies.base import PolicyBackbone
from pixelthink.rollouts.base import RolloutEngine
from pixelthink.rollouts.hf import HFEngine
from pixelthink.segmenters.base import Segmenter
from pixelthink.segmenters.grabcut import GrabCut


class EvaluationModule(PolicyModule):
    """Answers, segments and measures: for `validate`, `test` and `predict`.

    Weights come in Hugging Face format from `policy`, or with `--ckpt_path` from a checkpoint of training.

    Args:
        policy: Model family and weights.
        rollout: Engine that samples responses.
        segmenter: Turns answers into masks.
        evaluation: How answers are measured.
    """

    def __init__(
        self,
        policy: PolicyBackbone,
        rollout: RolloutEngine = lazy_instance(HFEngine),
        segmenter: Segmenter = lazy_instance(GrabCut),
        evaluation: EvaluationConfig = EvaluationConfig(),
    ) -> None:
        super().__init__(policy, rollout, segmenter, evaluation)
