"""The segmenter swap point: answers in, masks out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from pixelthink.geometry import Target


@dataclass(frozen=True)
class SegmentationRequest:
    """One image and the objects to be cut out of it.

    Attributes:
        image: RGB image at original resolution, W × H.
        objects: Boxes and points in original pixels; the mask is their union.
        points_per_object: How many of a target's two points were answered: 2, or the first alone (the answers of
            several objects have one point each, which `Target` repeats).
    """

    image: Image.Image
    objects: tuple[Target, ...]
    points_per_object: Literal[1, 2] = 2


class Segmenter(ABC):
    """Turns boxes and points into masks at the image's own resolution."""

    def setup(self, device: str = "cpu") -> None:  # noqa: B027
        """Loads weights. Constructors stay cheap; a segmenter without weights has nothing to do here."""

    @abstractmethod
    def segment(self, requests: Sequence[SegmentationRequest]) -> list[np.ndarray]:
        """Masks, bool (H, W), one a request and in its order. A request without objects gives an empty mask."""

    def probabilities(self, requests: Sequence[SegmentationRequest]) -> list[np.ndarray]:
        """How likely each pixel belongs to the mask, float32 (H, W) in [0, 1], one a request.

        At least 0.5 where `segment` is true, at most 0.5 elsewhere. A segmenter that knows only yes and no, as this
        default, gives 1 and 0.
        """
        return [mask.astype(np.float32) for mask in self.segment(requests)]
