"""From sampled tokens to a `Completion`, the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pixelthink.parsing import answer_text, parse_completion
from pixelthink.rollouts.uncertainty import top2_uncertainty
from pixelthink.types import Completion, Timings

if TYPE_CHECKING:
    from pixelthink.policies.base import PolicyBackbone


def make_completion(
    backbone: PolicyBackbone,
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    top_logprobs: Sequence[Sequence[float]],
    stopped: bool,
    timings: Timings = Timings(),
) -> Completion:
    """Decodes and counts.

    Args:
        backbone: Knows the tokenizer.
        token_ids: Sampled tokens, the end token included where it was sampled.
        logprobs: Of each, at temperature 1 before any token was forbidden.
        top_logprobs: Of the most likely tokens at each step, best first.
        stopped: Whether the last token is an end token.
        timings: The engine's share of the answer's time.

    Raises:
        ValueError: if no step has two candidates, so that there is no uncertainty.
    """
    text = backbone.processor.tokenizer.decode(list(token_ids[: len(token_ids) - stopped]))
    return Completion(
        token_ids=tuple(token_ids),
        logprobs=tuple(logprobs),
        text=text,
        finish_reason="stop" if stopped else "length",
        reasoning_tokens=backbone.count_tokens(parse_completion(text).reasoning),
        uncertainty=top2_uncertainty(top_logprobs),
        answer_tokens=backbone.count_tokens(answer_text(text)),
        timings=timings,
    )
