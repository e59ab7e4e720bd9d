"""Checks of samples from any source: mask, targets and difficulty fit the image, and an object has one target."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from pixelthink.errors import UserError
from pixelthink.geometry import Target
from pixelthink.types import Sample

MIN_DIFFICULTY, MAX_DIFFICULTY = 1.0, 10.0


def check_difficulty(value: object, owner: str) -> float:
    """A difficulty as a float.

    Raises:
        UserError: not a number from 1 to 10; names `owner`, the sample or file it belongs to, and the value.
    """
    number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")
    if not MIN_DIFFICULTY <= number <= MAX_DIFFICULTY:
        raise UserError(f"{owner}: difficulty must be a number from 1 to 10, got {str(value)[:60]!r}")
    return number


def check_sample(sample: Sample) -> Sample:
    """Returns the sample if it can be used; without mask and targets its truth is unknown, which is fine.

    Raises:
        UserError: one line that names the sample's id: an empty question, a mask or ignore region that is not bool of
            the image's height and width, a difficulty outside [1, 10], an object that is not named by text, targets
            beside an empty mask, a target outside the image, a box with corners in the wrong order, or a box in which
            the mask has no pixel.
    """
    width, height = sample.image.size
    owner = f"sample {sample.id!r}"
    if not sample.question.strip():
        raise UserError(f"{owner}: the question is empty")
    for name, mask in (("mask", sample.mask), ("ignore region", sample.ignore)):
        if mask is not None and mask.shape != (height, width):
            raise UserError(f"{owner}: the {name} has shape {mask.shape}, the image needs ({height}, {width})")
        if mask is not None and mask.dtype != np.bool_:
            raise UserError(f"{owner}: the {name} must be bool, got {mask.dtype}")
    if sample.difficulty is not None:
        check_difficulty(sample.difficulty, owner)
    if not isinstance(sample.object_id, str | None):
        raise UserError(f"{owner}: object_id must be text or None, got {type(sample.object_id).__name__}")
    if sample.targets and sample.mask is not None and not sample.mask.any():
        raise UserError(f"{owner}: the mask is empty, but {len(sample.targets)} target(s) are expected")
    for target in sample.targets:
        _check_target(target, owner, width, height)
        x1, y1, x2, y2 = (int(value) for value in target.box_xyxy)
        if sample.mask is not None and not sample.mask[y1 : y2 + 1, x1 : x2 + 1].any():
            raise UserError(f"{owner}: box {target.box_xyxy} does not meet the mask")
    return sample


def _check_target(target: Target, owner: str, width: int, height: int) -> None:
    """A target may touch the far edge: published boxes end at 840 in images of 840 pixels."""
    x1, y1, x2, y2 = target.box_xyxy
    if not (0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height):
        raise UserError(f"{owner}: box {target.box_xyxy} is not inside the image of {width} × {height} pixels")
    for x, y in target.points_xy:
        if not (0 <= x <= width and 0 <= y <= height):
            raise UserError(f"{owner}: point {(x, y)} is not inside the image of {width} × {height} pixels")


class ObjectTargets:
    """Remembers the target mask of each object, as a digest, and refuses a second one.

    Attributes:
        known: Object → the first sample that asked for it, and the digest of its target.
    """

    def __init__(self) -> None:
        self.known: dict[str, tuple[str, bytes]] = {}

    def add(self, sample: Sample) -> Sample:
        """Adds a sample and returns it; one without an object or a known target has nothing to be compared.

        Raises:
            UserError: an earlier sample of the object has another target; one line that names both.
        """
        if sample.object_id is not None and sample.mask is not None:
            self.add_mask(repr(sample.object_id), repr(sample.id), sample.mask)
        return sample

    def add_mask(self, name: str, owner: str, mask: np.ndarray) -> None:
        """Adds a target mask, bool (H, W), of object `name`; errors call its sample `owner`. Raises as `add`."""
        content = hashlib.blake2b(repr(mask.shape).encode() + np.packbits(mask).tobytes(), digest_size=16)
        self.merge({name: (owner, content.digest())})

    def merge(self, others: Mapping[str, tuple[str, bytes]]) -> None:
        """Adds what another process knows; raises as `add`."""
        for name, (owner, digest) in others.items():
            first, of_first = self.known.setdefault(name, (owner, digest))
            if of_first != digest:
                raise UserError(f"samples {first} and {owner} ask for the object {name}, but have different targets")
