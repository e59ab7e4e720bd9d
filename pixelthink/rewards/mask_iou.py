"""The segmenter in the training loop: how well the mask of an answer fits, as a reward term."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pixelthink.answering.acceptance import checked_objects
from pixelthink.errors import UserError
from pixelthink.rewards.base import RewardTerm
from pixelthink.segmenters.base import SegmentationRequest, Segmenter
from pixelthink.types import Prompt, ScoringCase

PIXELS_AT_ONCE = 2**26
"""Masks of so many pixels are held at once: 256 MB of float32."""


class MaskIoU(RewardTerm):
    """Soft IoU of the answer's mask with the true one: no threshold, so a better box earns more at every size.

    Σ min(p, t) / Σ max(p, t) over all pixels that are not ignored (the Ruzicka similarity), where p is the segmenter's
    probability of a pixel, and t is 1 in the true mask and 0 elsewhere. An answer that cannot be used earns 0. Where
    nothing is to be found, saying so earns 1 and anything else 0.

    All responses of a step are segmented together, so that a segmenter that keeps embeddings embeds each image once,
    however many completions it has. Off unless it is listed: `--model.reward.extra+=MaskIoU`.

    Args:
        segmenter: Who makes the masks; None takes the run's own, so that its weights are loaded once and its cached
            embeddings serve validation too.
        soft: Compare probabilities; false compares masks, p being 0 or 1 and the term the plain IoU.

    Raises:
        UserError: a response without its image or true mask; names the sample.
    """

    def __init__(self, segmenter: Segmenter | None = None, soft: bool = True) -> None:
        self.own = segmenter
        self.soft = soft
        self.segmenter: Segmenter | None = None

    def setup(self, device: str, segmenter: Segmenter) -> None:
        """Loads the weights of a segmenter of its own; else remembers the run's."""
        if self.own is not None:
            self.own.setup(device)
        self.segmenter = self.own or segmenter

    def __call__(self, case: ScoringCase) -> float:
        """The term's value for one response."""
        return self.values([case])[0]

    def values(self, cases: Sequence[ScoringCase]) -> list[float]:
        """The term's values, the segmenter being called for many responses at once."""
        prompts = [_with_mask(case) for case in cases]
        if self.segmenter is None:
            raise RuntimeError("MaskIoU.setup() has to come before the first response")
        make = self.segmenter.probabilities if self.soft else self.segmenter.segment
        found: list[float] = []
        answered = [checked_objects(prompt, case.answer) for prompt, case in zip(prompts, cases, strict=True)]
        requests = [
            SegmentationRequest(prompt.sample.image, objects.objects, objects.points_per_object)
            for prompt, objects in zip(prompts, answered, strict=True)
        ]
        for portion in portions(requests):
            for mask in make(portion):
                prompt, usable = prompts[len(found)], answered[len(found)].failure is None
                found.append(soft_iou(mask, prompt.sample.mask, prompt.sample.ignore) if usable else 0.0)
        return found


def soft_iou(likely: np.ndarray, truth: np.ndarray | None, ignore: np.ndarray | None = None) -> float:
    """Σ min(p, t) / Σ max(p, t), 1 where both are empty.

    Args:
        likely: p, float (H, W) in [0, 1], or bool.
        truth: t, bool (H, W).
        ignore: Pixels to leave out, bool (H, W).
    """
    assert truth is not None
    weight = likely if ignore is None else np.where(ignore, 0, likely)
    wanted = truth if ignore is None else truth & ~ignore
    total, area = float(weight.sum(dtype=np.float64)), float(wanted.sum())
    shared = float(weight[wanted].sum(dtype=np.float64))
    union = total + area - shared
    return shared / union if union > 0 else 1.0


def portions(
    requests: Sequence[SegmentationRequest], pixels: int = PIXELS_AT_ONCE
) -> Iterator[list[SegmentationRequest]]:
    """Runs of requests whose masks have at most so many pixels together; a larger one comes alone."""
    portion: list[SegmentationRequest] = []
    held = 0
    for request in requests:
        size = request.image.width * request.image.height
        if portion and held + size > pixels:
            yield portion
            portion, held = [], 0
        portion.append(request)
        held += size
    if portion:
        yield portion


def _with_mask(case: ScoringCase) -> Prompt:
    """The case's prompt.

    Raises:
        UserError: there is none, or its true mask is unknown; names the sample.
    """
    if case.prompt is None:
        raise UserError(f"sample {case.id}: MaskIoU needs the image, which a logged response has not; use it in fit")
    if case.prompt.sample.mask is None:
        raise UserError(f"sample {case.id}: MaskIoU needs the true mask, which the sample has not")
    return case.prompt
