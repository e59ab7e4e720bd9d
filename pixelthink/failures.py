"""Everything that can be wrong with an evaluated sample, by name: causes of failure, and flaws that are no failure."""

from __future__ import annotations

from typing import Literal, get_args

from pixelthink.parsing import Failure

ImageFailure = Literal["image_missing", "image_unreadable"]
"""Why a sample was not even asked: no file was where its image should be when it was its turn; there was one, and it
could not be read as an image (truncated, damaged, no image at all, too large, not to be opened)."""

IMAGE_FAILURES: tuple[ImageFailure, ...] = get_args(ImageFailure)

EvaluationFailure = Literal["box_outside_image", "segmenter_error", ImageFailure]
"""Why a readable answer, or none at all, has no mask: every answered box lies wholly outside the image; the segmenter
raised or gave something that is no mask of the image; or see `ImageFailure`."""

Cause = Literal[Failure, EvaluationFailure]
"""Why a sample scores 0, see `pixelthink.parsing.Failure` and `EvaluationFailure`."""

CAUSES: tuple[Cause, ...] = get_args(Cause)

Flaw = Literal["points_off_box", "box_beyond_image", "object_outside_image"]
"""What is odd about an answer that is segmented all the same, as the released evaluation does: a point lies outside its
own box; a box reaches beyond the image and is cut at its edge; one of several boxes lies wholly outside the image and
is left out."""

FLAWS: tuple[Flaw, ...] = get_args(Flaw)


def was_asked(failure: str | None) -> bool:
    """Whether there is an answer at all, good or not: the image could be read. Lengths are means of such samples."""
    return failure not in IMAGE_FAILURES


def was_read(failure: str | None) -> bool:
    """Whether an answer could be read, whatever became of its mask; the parse rate is the share of those asked."""
    return was_asked(failure) and (failure is None or failure in get_args(EvaluationFailure))
