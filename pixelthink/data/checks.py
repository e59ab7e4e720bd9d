"""What every sample must fulfil before it meets a model, whatever its source."""

from __future__ import annotations

import numpy as np

from pixelthink.geometry import Target
from pixelthink.types import Sample

MIN_DIFFICULTY, MAX_DIFFICULTY = 1.0, 10.0


def check_difficulty(value: object, owner: str) -> float:
    """A difficulty as a float.

    Args:
        value: What a file or a source says it is.
        owner: Whose difficulty it is, for the message.

    Raises:
        ValueError: not a number from 1 to 10; names `owner` and the value.
    """
    number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")
    if not MIN_DIFFICULTY <= number <= MAX_DIFFICULTY:
        raise ValueError(f"{owner}: difficulty must be a number from 1 to 10, got {str(value)[:60]!r}")
    return number


def check_sample(sample: Sample) -> Sample:
    """Returns the sample if it can be used.

    Args:
        sample: Any sample. Without mask and targets it is one whose truth is unknown, which is fine.

    Raises:
        ValueError: one line that names the sample's id: an empty question, a mask or ignore region that is not bool of
            the image's height and width, a difficulty that is not in [1, 10], an object that is not named by text,
            targets beside an empty mask, a target outside the image, with corners in the wrong order, or with a box in
            which the mask has no pixel: a target in a frame that is not the image's own shows itself here.
    """
    width, height = sample.image.size
    owner = f"sample {sample.id!r}"
    if not sample.question.strip():
        raise ValueError(f"{owner}: the question is empty")
    for name, mask in (("mask", sample.mask), ("ignore region", sample.ignore)):
        if mask is not None:
            _check_mask(mask, f"{owner}: the {name}", width, height)
    if sample.difficulty is not None:
        check_difficulty(sample.difficulty, owner)
    if not isinstance(sample.object_id, str | None):
        raise ValueError(f"{owner}: object_id must be text or None, got {type(sample.object_id).__name__}")
    if sample.targets and sample.mask is not None and not sample.mask.any():
        raise ValueError(f"{owner}: the mask is empty, but {len(sample.targets)} target(s) are expected")
    for target in sample.targets:
        _check_target(target, owner, width, height)
        if sample.mask is not None and not _meets(target, sample.mask):
            raise ValueError(f"{owner}: box {target.box_xyxy} does not meet the mask")
    return sample


def _check_mask(mask: np.ndarray, name: str, width: int, height: int) -> None:
    if mask.shape != (height, width):
        raise ValueError(f"{name} has shape {mask.shape}, the image needs ({height}, {width})")
    if mask.dtype != np.bool_:
        raise ValueError(f"{name} must be bool, got {mask.dtype}")


def _meets(target: Target, mask: np.ndarray) -> bool:
    """Whether the mask has a pixel in the target's box."""
    x1, y1, x2, y2 = (int(value) for value in target.box_xyxy)
    return bool(mask[y1 : y2 + 1, x1 : x2 + 1].any())


def _check_target(target: Target, owner: str, width: int, height: int) -> None:
    x1, y1, x2, y2 = target.box_xyxy
    if not (0 <= x1 <= x2 <= width - 1 and 0 <= y1 <= y2 <= height - 1):
        raise ValueError(f"{owner}: box {target.box_xyxy} is not inside the image of {width} × {height} pixels")
    for x, y in target.points_xy:
        if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
            raise ValueError(f"{owner}: point {(x, y)} is not inside the image of {width} × {height} pixels")
