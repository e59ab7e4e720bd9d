"""The segmenter swap point: answers in, masks out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pixelthink.types import Target


@dataclass(frozen=True)
class SegmentationRequest:
    """One image and the objects to be cut out of it.

    Attributes:
        image: RGB image at original resolution, W × H.
        objects: Boxes and points in original pixels; the mask is their union.
    """

    image: Image.Image
    objects: tuple[Target, ...]


class Segmenter(ABC):
    """Turns boxes and points into masks at the image's own resolution."""

    def setup(self, device: str = "cpu") -> None:  # noqa: B027
        """Loads weights. Constructors stay cheap; a segmenter without weights has nothing to do here."""

    @abstractmethod
    def segment(self, requests: Sequence[SegmentationRequest]) -> list[np.ndarray]:
        """Masks, bool (H, W), one a request and in its order. A request without objects gives an empty mask."""
