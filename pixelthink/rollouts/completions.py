"""Makes a `Completion` from sampled tokens, for every engine."""

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
    """Decodes a response, counts its tokens and computes its uncertainty.

    Args:
        backbone: Has the tokenizer.
        token_ids: Sampled tokens, the stop token included where it was sampled.
        logprobs: Log-probability of each, at temperature 1 before any token was forbidden.
        top_logprobs: Log-probabilities of the most likely tokens at each step, best first.
        stopped: Whether the last token is a stop token.
        timings: The engine's share of the answer's time.

    Raises:
        ValueError: no step has two log-probabilities, so that there is no uncertainty.
    """
    text = backbone.processor.tokenizer.decode(list(token_ids[: len(token_ids) - stopped]), skip_special_tokens=True)
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
