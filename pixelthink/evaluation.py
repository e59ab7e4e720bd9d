"""What every module of the package can do: load a policy, answer prompts, turn answers into masks, measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import lightning as L
import numpy as np
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from pixelthink.components import resolved
from pixelthink.geometry import clip_target
from pixelthink.metrics.report import SegmentationReport
from pixelthink.parsing import Answer, parse_completion
from pixelthink.policies.base import PolicyBackbone
from pixelthink.rollouts.base import RolloutEngine, SamplingConfig
from pixelthink.rollouts.weight_sync import SyncConfig, WeightSync
from pixelthink.segmenters.base import SegmentationRequest, Segmenter
from pixelthink.timing import now
from pixelthink.types import Box, Completion, Point, Prediction, Prompt, PromptBatch, RolloutBatch, Target, Timings


@dataclass(frozen=True)
class EvaluationConfig:
    """How answers are measured.

    Attributes:
        protocol: Whose rules for ignored pixels and empty masks apply, see `pixelthink.metrics`.
        sampling: How answers are sampled; greedily by default, as in the released evaluation.
    """

    protocol: Literal["lisa", "segzero", "lens"] = "segzero"
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(group_size=1, temperature=0.0))

    def __post_init__(self) -> None:
        if self.sampling.group_size != 1:
            raise ValueError("evaluation.sampling.group_size must be 1: every prompt is answered once")


class PolicyModule(L.LightningModule):
    """A policy under evaluation; the base of the modules that train one.

    Args:
        policy: Model family and weights.
        rollout: Engine that samples responses.
        segmenter: Turns answers into masks.
        evaluation: How answers are measured.
    """

    def __init__(
        self, policy: PolicyBackbone, rollout: RolloutEngine, segmenter: Segmenter, evaluation: EvaluationConfig
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold what is trained; on_load_checkpoint is strict about that
        self.backbone = resolved(policy)
        self.rollout = resolved(rollout)
        self.segmenter = resolved(segmenter)
        self.evaluation = evaluation
        self.policy: nn.Module | None = None
        self.sync_config = SyncConfig()  # the callback RolloutWeightSync replaces it
        self.weight_sync: WeightSync | None = None
        self.report = nn.ModuleDict({stage: SegmentationReport(evaluation.protocol) for stage in ("validate", "test")})

    def configure_model(self) -> None:
        """Loads the weights; Lightning may call this more than once."""
        if self.policy is None:
            self.backbone.setup()
            self.policy = self.backbone.load_model()
        if self.is_fitting and not any(True for _ in self.trainable_parameters()):
            raise ValueError("model.policy: no weight would be trained; a quantised policy needs model.policy.adapter")

    @property
    def is_fitting(self) -> bool:
        """Whether the weights are for training, be it by a trainer or by hand."""
        return self._trainer is None or self.trainer.state.fn == TrainerFn.FITTING

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        coordinates = getattr(data, "coordinates", self.backbone.convention)
        if coordinates != self.backbone.convention:
            raise ValueError(
                f"data.coordinates is {coordinates!r} but {type(self.backbone).__name__} answers in "
                f"{self.backbone.convention!r}"
            )

    def on_fit_start(self) -> None:
        self._start_components()

    def on_validation_start(self) -> None:
        self._start_components()

    def on_test_start(self) -> None:
        self._start_components()

    def on_predict_start(self) -> None:
        self._start_components()

    _started = False

    def _start_components(self) -> None:
        """Starts engine and segmenter once the weights are where they belong, checkpoint included."""
        if not self._started:
            assert self.policy is not None
            self.rollout.setup(self.backbone, self.policy)
            self.weight_sync = WeightSync(self.rollout, self.backbone, self.policy, self.sync_config)
            self.segmenter.setup(str(self.device))
            self._started = True

    def sample(
        self, batch: PromptBatch, sampling: SamplingConfig, seed: int, *, evaluating: bool = False
    ) -> RolloutBatch:
        """Samples completions; an engine with weights of its own gets the policy's first, where they are due.

        Raises:
            WeightSyncError: such an engine does not sample from the policy's weights.
        """
        assert self.weight_sync is not None
        self.weight_sync.bring_up_to_date(self.global_step, batch, evaluating=evaluating)
        return self.rollout.generate(batch, sampling, seed)

    def answer(self, batch: PromptBatch) -> list[Prediction]:
        """Answers each prompt once and segments the answers."""
        rollout = self.sample(batch, self.evaluation.sampling, seed=0, evaluating=True)
        style = getattr(getattr(self.trainer, "datamodule", None), "prompt", None)
        answer_style = style.answer_style if style is not None else "single"
        answers = [parse_completion(c.text, answer_style) for c in rollout.completions]
        return segment_answers(batch.prompts, rollout.completions, answers, self.segmenter)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        return self._measure(batch, "validate")

    def test_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        return self._measure(batch, "test")

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:
        return self.answer(batch)

    def _measure(self, batch: PromptBatch, stage: str) -> list[Prediction]:
        predictions = self.answer(batch)
        report = self.report[stage]
        assert isinstance(report, SegmentationReport)
        report.update(predictions)
        return predictions

    def on_validation_end(self) -> None:
        self.rollout.sleep()

    def on_test_end(self) -> None:
        self.rollout.sleep()

    def on_predict_end(self) -> None:
        self.rollout.sleep()

    def on_validation_epoch_end(self) -> None:
        self._log_report("validate", "val")

    def on_test_epoch_end(self) -> None:
        self._log_report("test", "test")

    def _log_report(self, stage: str, prefix: str) -> None:
        report = self.report[stage]
        assert isinstance(report, SegmentationReport)
        values = {f"{prefix}/{name}": value for name, value in report.compute().items()}
        self.log_dict(values, rank_zero_only=True)
        self.log("gIoU", values[f"{prefix}/giou"], prog_bar=True, logger=False, rank_zero_only=True)
        report.reset()

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that an optimizer may change."""
        assert self.policy is not None
        return (p for p in self.policy.parameters() if p.requires_grad)

    def step_optimizer(self, max_grad_norm: float) -> Tensor:
        """Clips the gradients, steps, and clears them; returns the norm that they had."""
        optimizer = cast("LightningOptimizer", self.optimizers())
        norm = nn.utils.clip_grad_norm_(list(self.trainable_parameters()), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return norm.detach()

    def checkpointed(self) -> set[str]:
        """Names of what a checkpoint holds: everything but those of the policy's weights that nobody trains."""
        assert self.policy is not None
        policy = {f"policy.{name}" for name in self.backbone.checkpointed(self.policy)}
        return {name for name in self.state_dict() if name in policy or not name.startswith("policy.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what can be loaded from elsewhere, such as the weights below an adapter."""
        kept = self.checkpointed()
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another policy, which loading without the weights left out would let pass.

        Raises:
            ValueError: weights of the policy are missing, or there are others; one line that names the first.
        """
        if "state_dict" not in checkpoint:  # a sharded checkpoint, which its strategy has loaded
            return
        own, found = self.checkpointed(), set(checkpoint["state_dict"])
        for names, what in ((own - found, "lacks"), (found - own, "has, besides the policy's,")):
            if names:
                raise ValueError(
                    f"the checkpoint is another policy's: it {what} {len(names)} weights, {min(names)!r} first"
                )


def segment_answers(
    prompts: Sequence[Prompt], completions: Sequence[Completion], answers: Sequence[Answer], segmenter: Segmenter
) -> list[Prediction]:
    """Masks of parsed answers, each the union of its objects.

    An answer that cannot be used, and one that names no object, gets an empty mask; none is dropped, and what failed
    keeps its reason.
    """
    requests = [segmentation_request(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    asked = [i for i, request in enumerate(requests) if request.objects]
    started = now()
    masks = dict(zip(asked, segmenter.segment([requests[i] for i in asked]), strict=True)) if asked else {}
    share_ms = 1000 * (now() - started) / max(1, len(asked))
    predictions = []
    for i, (prompt, completion, answer) in enumerate(zip(prompts, completions, answers, strict=True)):
        width, height = prompt.sample.image.size
        mask = masks.get(i, np.zeros((height, width), dtype=bool))
        timings = answer_timings(prompt, completion, segmentation_ms=share_ms if i in masks else 0.0)
        predictions.append(Prediction(prompt, completion, answer, mask, answer.failure, requests[i].objects, timings))
    return predictions


def answer_timings(prompt: Prompt, completion: Completion, segmentation_ms: float) -> Timings:
    """The stages of one answer; the preparation is the resize plus the engine's part, where both were measured."""
    resize, processor = prompt.preparation_ms, completion.timings.preparation_ms
    preparation = None if resize is None or processor is None else resize + processor
    return replace(completion.timings, preparation_ms=preparation, segmentation_ms=segmentation_ms)


def segmentation_request(prompt: Prompt, answer: Answer) -> SegmentationRequest:
    """What the segmenter is asked for; each of several answered objects has one point, a single object two."""
    return SegmentationRequest(prompt.sample.image, answered_objects(prompt, answer), 1 if answer.objects else 2)


def answered_objects(prompt: Prompt, answer: Answer) -> tuple[Target, ...]:
    """The answered objects in original pixels, inside the image; none where the answer cannot be used."""
    if answer.failure is not None:
        return ()
    found = [(o.box_xyxy, (o.point_xy, o.point_xy)) for o in answer.objects]
    if not found and answer.box_xyxy is not None and answer.points_xy is not None:
        found = [(answer.box_xyxy, (answer.points_xy[0], answer.points_xy[-1]))]
    return tuple(
        clip_target(
            prompt.frame.target_to_original(Target(cast("Box", box), cast("tuple[Point, Point]", points))),
            *prompt.sample.image.size,
        )
        for box, points in found
    )
