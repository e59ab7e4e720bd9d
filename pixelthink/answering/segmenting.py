"""Parsed answers → masks, with every way in which that can go wrong named and counted, and no sample dropped."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pixelthink.answering.acceptance import Acceptance, answered_objects
from pixelthink.errors import UserError
from pixelthink.parsing import Answer
from pixelthink.segmenters.base import SegmentationRequest, Segmenter
from pixelthink.timing import now
from pixelthink.types import Completion, Prediction, Prompt, Timings


def segment_answers(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    answers: Sequence[Answer],
    segmenter: Segmenter,
    acceptance: Acceptance,
) -> list[Prediction]:
    """Masks of parsed answers, each the union of its objects; `acceptance` says which answers can be used.

    An answer that cannot be used, and one that names no object, gets an empty mask; so does a request on which the
    segmenter fails, while the others of its batch get theirs. None is dropped, and what failed keeps its reason.
    """
    found = [
        answered_objects(prompt, completion.text, answer, acceptance)
        for prompt, completion, answer in zip(prompts, completions, answers, strict=True)
    ]
    asked = [i for i, answered in enumerate(found) if answered.objects]
    requests = [
        SegmentationRequest(prompts[i].sample.image, found[i].objects, found[i].points_per_object) for i in asked
    ]
    started = now()
    masks = dict(zip(asked, masks_or_reasons(segmenter, requests), strict=True))
    share_ms = 1000 * (now() - started) / max(1, len(asked))
    predictions = []
    for i, (prompt, completion, answer) in enumerate(zip(prompts, completions, answers, strict=True)):
        timings = answer_timings(prompt, completion, segmentation_ms=share_ms if i in masks else 0.0)
        mask = masks.get(i, empty_mask(prompt))
        prediction = Prediction(
            prompt,
            completion,
            answer,
            empty_mask(prompt),
            found[i].failure,
            found[i].objects,
            failure_detail=found[i].detail,
        )
        if isinstance(mask, str):
            prediction = replace(prediction, failure="segmenter_error", failure_detail=mask)
        else:
            prediction = replace(prediction, mask=mask)
        predictions.append(replace(prediction, timings=timings, flaws=found[i].flaws))
    return predictions


def masks_or_reasons(segmenter: Segmenter, requests: Sequence[SegmentationRequest]) -> list[np.ndarray | str]:
    """A mask for each request or, where the segmenter fails on it, why; a failing batch is asked for one by one.

    Raises:
        ImportError: a package of the segmenter is missing, which no other request could change.
        UserError: the segmenter gave more or fewer masks than it was asked for.
    """
    if not requests:
        return []
    try:
        masks = segmenter.segment(requests)
    except ImportError:
        raise
    except Exception as error:  # whatever a backend raises: it is counted, and said once
        if len(requests) > 1:
            return [masks_or_reasons(segmenter, [request])[0] for request in requests]
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        warnings.warn(f"{type(segmenter).__name__} failed, which is counted as segmenter_error: {reason}", stacklevel=2)
        return [reason]
    if len(masks) != len(requests):
        raise UserError(f"{type(segmenter).__name__} gave {len(masks)} masks for {len(requests)} requests")
    return [_checked_mask(mask, request) for mask, request in zip(masks, requests, strict=True)]


def missing_image_prediction(prompt: Prompt) -> Prediction:
    """What stands for a sample without its image: no answer, an empty mask, and the cause."""
    missing = prompt.sample.missing
    assert missing is not None
    nothing = Answer("", None, None, think_ok=False, answer_ok=False, failure=None)
    completion = Completion((), (), "", "stop", reasoning_tokens=0, uncertainty=None, answer_tokens=0)
    mask = empty_mask(prompt)
    return Prediction(prompt, completion, nothing, mask, missing.cause, failure_detail=missing.reason)


def empty_mask(prompt: Prompt) -> np.ndarray:
    """A mask of the original image without any pixel, bool (H, W)."""
    width, height = prompt.sample.image.size
    return np.zeros((height, width), dtype=bool)


def answer_timings(prompt: Prompt, completion: Completion, segmentation_ms: float) -> Timings:
    """The stages of one answer; the preparation is the resize plus the engine's part, where both were measured."""
    resize, processor = prompt.preparation_ms, completion.timings.preparation_ms
    preparation = None if resize is None or processor is None else resize + processor
    return replace(completion.timings, preparation_ms=preparation, segmentation_ms=segmentation_ms)


def _checked_mask(mask: object, request: SegmentationRequest) -> np.ndarray | str:
    """The mask, or an error message where its type or shape does not fit the image."""
    width, height = request.image.size
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (height, width):
        what = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        return f"a mask must be bool {(height, width)}, got {what}"
    return mask
