"""Everything that can be wrong with an evaluated sample, by name: causes of failure, and flaws that are no failure."""

from __future__ import annotations

from typing import Literal, get_args

from pixelthink.parsing import Failure

EvaluationFailure = Literal["box_outside_image", "segmenter_error", "image_lost"]
"""Why a readable answer, or none at all, has no mask: every answered box lies wholly outside the image; the segmenter
raised or gave something that is no mask of the image; the image was there when the run began and could not be found
when it was its turn."""

Cause = Literal[Failure, EvaluationFailure]
"""Why a sample scores 0, see `pixelthink.parsing.Failure` and `EvaluationFailure`."""

CAUSES: tuple[Cause, ...] = get_args(Cause)

Flaw = Literal["points_off_box", "box_beyond_image", "object_outside_image"]
"""What is odd about an answer that is segmented all the same, as the released evaluation does: a point lies outside its
own box; a box reaches beyond the image and is cut at its edge; one of several boxes lies wholly outside the image and
is left out."""

FLAWS: tuple[Flaw, ...] = get_args(Flaw)
