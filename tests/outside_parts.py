"""One component of each kind from outside the package. Each notes that it was used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback
from torch import nn

from pixelthink.data.base import SampleSource
from pixelthink.data.prompts import PromptStyle
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.rewards.base import LengthResult, LengthScore, Reward, RewardTerm
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.rollouts.hf import HFEngine
from pixelthink.segmenters.base import SegmentationRequest, Segmenter
from pixelthink.training.grpo_module import GRPOModule
from pixelthink.types import PromptBatch, RolloutBatch, Sample, Score, ScoringCase

USED: set[str] = set()
"""Names of the components that have done their work."""


class OutsideModule(GRPOModule):
    """GRPO that notes its steps."""

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        USED.add("OutsideModule")
        super().training_step(batch, batch_idx)


class OutsidePolicy(Qwen25VL):
    """A policy that notes that it was loaded.

    Args:
        folder: Where the weights are.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder, dtype="float32", local_files_only=True)

    def load_model(self) -> nn.Module:
        USED.add("OutsidePolicy")
        return super().load_model()


class OutsideEngine(HFEngine):
    """An engine that notes its rollouts."""

    def generate(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> RolloutBatch:
        USED.add("OutsideEngine")
        return super().generate(batch, sampling, seed)


class OutsideReward(Reward):
    """The shorter, the better.

    Args:
        scale: Reward of a response without a word.
    """

    def __init__(self, scale: float = 2.0) -> None:
        self.scale = scale

    def score(self, case: ScoringCase) -> Score:
        USED.add("OutsideReward")
        return Score(self.scale / (1 + len(case.text)), {"brevity": 1.0})


class OutsideTerm(RewardTerm):
    """A constant."""

    def __call__(self, case: ScoringCase) -> float:
        USED.add("OutsideTerm")
        return 1.0


class OutsideLength(LengthScore):
    """No length is too long."""

    def __call__(self, case: ScoringCase) -> LengthResult:
        USED.add("OutsideLength")
        return LengthResult(1.0)


class OutsideSegmenter(Segmenter):
    """Fills the whole image."""

    def setup(self, device: str = "cpu") -> None:
        USED.add("OutsideSegmenter")

    def segment(self, requests: Sequence[SegmentationRequest]) -> list[np.ndarray]:
        return [np.ones((request.image.height, request.image.width), dtype=bool) for request in requests]


class OutsideSource(SampleSource):
    """Four miniature scenes."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        USED.add("OutsideSource")
        return ShapeScenes(size=4)[index]


class OutsidePrompt(PromptStyle):
    """Only the question."""

    system = ""

    def text(self, question: str) -> str:
        USED.add("OutsidePrompt")
        return question


class OutsideCallback(Callback):
    """Notes that training has ended."""

    def on_fit_end(self, *rest: Any) -> None:
        USED.add("OutsideCallback")
