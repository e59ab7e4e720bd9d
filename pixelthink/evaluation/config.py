"""How answers are measured, as a config says it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pixelthink.answering.acceptance import Acceptance
from pixelthink.errors import UserError
from pixelthink.metrics.counting import Count
from pixelthink.metrics.functional import ProtocolName, get_protocol
from pixelthink.policies.base import PolicyBackbone
from pixelthink.rollouts.base import SamplingConfig


@dataclass(frozen=True)
class EvaluationConfig:
    """How answers are measured.

    Attributes:
        protocol: Whose evaluation this is: rules for answers, ignored pixels and empty masks, see
            `pixelthink.metrics.functional`.
        acceptance: Which answers are read; None goes by the protocol, see `pixelthink.answering.acceptance`.
        count: What counts once in N, gIoU and cIoU. "expression": each question. "object": each object, averaged over
            its questions first (RefCOCO's sentences about one annotation, the texts of a ReasonSeg image); intervals
            draw objects then. Tokens, times, ratings and failures are of every answer either way.
        sampling: How answers are sampled; greedily by default, as in the released evaluation. Where it leaves
            `repetition_penalty` open, the protocol decides.
        bootstrap_samples: Resamples behind the 95 % intervals.
        bootstrap_seed: Seed of the resamples.
        model_billions: Parameters of the model in billions, for the efficiency metrics (the papers say 7 for
            Qwen2.5-VL-7B); without it there are none.
        token_budget: Mean reasoning tokens that answers may take. With it `giou_within_budget` is logged, for early
            stopping and the best checkpoint, see the function of that name.
    """

    protocol: ProtocolName = "segzero"
    acceptance: Acceptance | None = None
    count: Count = "expression"
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(group_size=1, temperature=0.0))
    bootstrap_samples: int = 2000
    bootstrap_seed: int = 0
    model_billions: float | None = None
    token_budget: float | None = None

    def __post_init__(self) -> None:
        if self.bootstrap_samples < 1:
            raise UserError("evaluation.bootstrap_samples must be at least 1")
        if self.model_billions is not None and self.model_billions <= 0:
            raise UserError(f"evaluation.model_billions must be positive, got {self.model_billions}")
        if self.token_budget is not None and self.token_budget <= 0:
            raise UserError(f"evaluation.token_budget must be positive, got {self.token_budget}")
        if self.sampling.group_size != 1:
            raise UserError("evaluation.sampling.group_size must be 1: every prompt is answered once")

    @property
    def accepts(self) -> Acceptance:
        """Which answers are read."""
        return self.acceptance or get_protocol(self.protocol).acceptance

    def sampling_of(self, backbone: PolicyBackbone) -> SamplingConfig:
        """How answers of a policy are sampled; what the configuration leaves open is settled."""
        if self.sampling.repetition_penalty is not None:
            return self.sampling
        penalty = backbone.repetition_penalty() if get_protocol(self.protocol).checkpoint_penalty else 1.0
        return replace(self.sampling, repetition_penalty=penalty)

    def deviations(self, resize: str | None, autocast: str | None) -> list[str]:
        """In what this evaluation is not the protocol's, in words of the command line; for results and for a warning.

        Args:
            resize: How images are resized; None where nothing says it.
            autocast: Precision of the segmenter; None where it has no such setting.
        """
        protocol = get_protocol(self.protocol)
        asked = {
            "data.resize": (resize, protocol.resize),
            "model.segmenter.autocast": (autocast, protocol.autocast),
            "model.evaluation.acceptance": (self.accepts, protocol.acceptance),
        }
        found = [
            f"{name} is {value}, not {rule}"
            for name, (value, rule) in asked.items()
            if rule and value and value != rule
        ]
        sampling, name = self.sampling, "model.evaluation.sampling"
        if protocol.checkpoint_penalty and sampling.repetition_penalty is not None:
            found.append(f"{name}.repetition_penalty is {sampling.repetition_penalty:g}, not the checkpoint's")
        if protocol.is_greedy and sampling.temperature > 0:
            found.append(f"{name}.temperature is {sampling.temperature:g}, not 0")
        return found


def giou_within_budget(giou: float, tokens: float, budget: float) -> float:
    """One number for choosing the best checkpoint within a budget of reasoning tokens; higher is better.

    Within the budget it is gIoU. Above it is 1 − tokens / budget, which is negative: every policy within the budget is
    better than every policy above it, and of those above it the shortest is best.

    Args:
        giou: In 0 to 1.
        tokens: Mean reasoning tokens.
        budget: The most that they may be.
    """
    return giou if tokens <= budget else 1 - tokens / budget
