"""From a question about an image to its mask: sample a response, parse the answer, segment it. Needs no Trainer."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pixelthink.answering.acceptance import Acceptance
from pixelthink.answering.segmenting import missing_image_prediction, segment_answers
from pixelthink.components import resolved
from pixelthink.parsing import parse_completion
from pixelthink.policies.base import PolicyBackbone
from pixelthink.rollouts.base import RolloutEngine, SamplingConfig
from pixelthink.rollouts.synced_engine import SyncConfig, SyncedEngine
from pixelthink.segmenters.base import Segmenter
from pixelthink.types import Prediction, PromptBatch


class Answerer:
    """A policy, an engine that samples from it, and a segmenter. Whoever samples or answers does it through this.

    Args:
        backbone: Model family and weights.
        rollout: How responses are sampled. It is reachable only as `engine`, which keeps its weights up to date.
        segmenter: Turns answers into masks.
    """

    def __init__(self, backbone: PolicyBackbone, rollout: RolloutEngine, segmenter: Segmenter) -> None:
        self.backbone = resolved(backbone)
        self.segmenter = resolved(segmenter)
        self._rollout = resolved(rollout)
        self._engine: SyncedEngine | None = None

    def load_policy(self) -> nn.Module:
        """Opens the policy's files and loads its weights."""
        self.backbone.setup()
        return self.backbone.load_model()

    def start(
        self,
        policy: nn.Module,
        device: str = "cpu",
        sync: SyncConfig = SyncConfig(),
        version: Callable[[], int] = lambda: 0,
    ) -> None:
        """Starts engine and segmenter. Calling it again does nothing.

        Args:
            policy: What `load_policy` gave, on its device, with the weights to answer with.
            device: Where the segmenter computes.
            sync: When an engine with weights of its own gets the policy's, and how that is checked.
            version: Gives the number of optimizer steps that the policy has seen.
        """
        if self._engine is None:
            self._engine = SyncedEngine(self._rollout, self.backbone, policy, sync, version)
            self.segmenter.setup(device)

    @property
    def is_started(self) -> bool:
        """Whether `start` has been called."""
        return self._engine is not None

    @property
    def engine(self) -> SyncedEngine:
        """The engine with the policy's weights, once `start` has been called."""
        assert self._engine is not None, "Answerer.start has not been called"
        return self._engine

    @property
    def samples_beside_training(self) -> bool:
        """Whether the engine can sample while the policy trains."""
        return self._rollout.samples_beside_training

    @property
    def engine_type(self) -> type[RolloutEngine]:
        """Class of the engine, for reports and messages."""
        return type(self._rollout)

    def answer(
        self, batch: PromptBatch, sampling: SamplingConfig, seed: int = 0, acceptance: Acceptance = "pixelthink"
    ) -> list[Prediction]:
        """Answers each prompt once and segments what was answered.

        Args:
            batch: P prompts. One without its image is not asked and counts as failed.
            sampling: How answers are sampled; `group_size` is 1.
            seed: Seed of the sampling.
            acceptance: Which answers can be used, see `pixelthink.answering.acceptance`.

        Returns:
            P predictions. An answer that cannot be used has an empty mask and the reason; none is left out.
        """
        present = [i for i, prompt in enumerate(batch.prompts) if prompt.sample.missing is None]
        found: dict[int, Prediction] = {}
        if present:
            prompts = tuple(batch.prompts[i] for i in present)
            asked = PromptBatch(prompts, tuple(batch.places[i] for i in present))
            completions = self.engine.generate(asked, sampling, seed, evaluating=True).completions
            answers = [parse_completion(c.text, p.answer_style) for c, p in zip(completions, prompts, strict=True)]
            found = dict(
                zip(present, segment_answers(prompts, completions, answers, self.segmenter, acceptance), strict=True)
            )
        return [found.get(i) or missing_image_prediction(prompt) for i, prompt in enumerate(batch.prompts)]
