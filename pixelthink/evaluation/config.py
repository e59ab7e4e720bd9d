"""How answers are measured, as a config says it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pixelthink.errors import UserError
from pixelthink.metrics.counting import Count
from pixelthink.metrics.functional import ProtocolName
from pixelthink.rollouts.base import SamplingConfig


@dataclass(frozen=True)
class EvaluationConfig:
    """How answers are measured.

    Attributes:
        protocol: Rules for ignored pixels and empty masks, see `pixelthink.metrics.functional`.
        count: What counts once in N, gIoU and cIoU. "expression": each question. "object": each object, averaged over
            its questions first (RefCOCO's sentences about one annotation, the texts of a ReasonSeg image); intervals
            draw objects then. Tokens, times, ratings and failures are of every answer either way.
        sampling: How answers are sampled; greedily by default, as in the released evaluation.
        bootstrap_samples: Resamples behind the 95 % intervals.
        bootstrap_seed: Seed of the resamples.
        model_billions: Parameters of the model in billions, for the efficiency metrics (the papers say 7 for
            Qwen2.5-VL-7B); without it there are none.
        token_budget: Mean reasoning tokens that answers may take. With it `giou_within_budget` is logged, for early
            stopping and the best checkpoint, see the function of that name.
    """

    protocol: ProtocolName = "segzero"
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
