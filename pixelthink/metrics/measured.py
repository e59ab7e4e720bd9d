"""The numbers of one evaluated sample, from which every metric of an evaluation is computed."""

from __future__ import annotations

from dataclasses import dataclass, field

from pixelthink.errors import UserError
from pixelthink.failures import Cause, Flaw
from pixelthink.metrics.counting import object_key
from pixelthink.metrics.functional import Protocol, mask_counts, mask_ious
from pixelthink.types import Prediction, Timings


@dataclass(frozen=True)
class Measured:
    """One sample, measured.

    Attributes:
        id: The sample's id.
        difficulty: 1 to 10, or None where nobody rated it.
        intersection: Pixels, under the protocol.
        union: Pixels, under the protocol; 0 where the image is missing and its true mask unknown.
        iou: In 0 to 1; 0 where the answer failed, also where there was nothing to be found.
        failure: Why the sample scores 0, or None.
        flaws: What is odd about the answer.
        reasoning_tokens: Tokens inside `<think>`.
        answer_tokens: Tokens inside `<answer>`; None where nobody counted them.
        response_tokens: Tokens of the whole response, the end token included.
        words: White-space separated words of the whole response.
        timings: Where the time went.
        rscore: A judge's rating of the reasoning, 0 to 10; None where there is none.
        judge_failure: Why the judge gave none, or None.
        judge_detail: More about that, on one line, or None.
        object_id: What the question asks for; None where the sample is an object of its own.
    """

    id: str
    difficulty: float | None
    intersection: int
    union: int
    iou: float
    failure: Cause | None
    flaws: tuple[Flaw, ...]
    reasoning_tokens: int
    answer_tokens: int | None
    response_tokens: int
    words: int
    timings: Timings = field(default=Timings())
    rscore: float | None = None
    judge_failure: str | None = None
    judge_detail: str | None = None
    object_id: str | None = None

    @property
    def object_key(self) -> str:
        """Samples of one key count together where objects are counted, see `counting.object_key`."""
        return object_key(self.id, self.object_id)


def measure(prediction: Prediction, protocol: Protocol) -> Measured:
    """Measures one prediction under a protocol; a failed one has an intersection of 0 and an IoU of 0.

    Raises:
        UserError: the sample's true mask is unknown; names it.
    """
    sample, completion = prediction.prompt.sample, prediction.completion
    if sample.mask is not None:
        shared, joined = mask_counts(prediction.mask, sample.mask, sample.ignore, protocol)
    elif sample.missing is not None:
        shared, joined = 0, 0
    else:
        raise UserError(f"sample {sample.id!r} has no mask, so its answer cannot be measured; use predict")
    return Measured(
        id=sample.id,
        difficulty=sample.difficulty,
        intersection=shared,
        union=joined,
        iou=0.0 if prediction.failure is not None else float(mask_ious([shared], [joined], protocol)[0]),
        failure=prediction.failure,
        flaws=prediction.flaws,
        reasoning_tokens=completion.reasoning_tokens,
        answer_tokens=completion.answer_tokens,
        response_tokens=len(completion.token_ids),
        words=len(completion.text.split()),
        timings=prediction.timings,
        object_id=sample.object_id,
    )
