"""Questions with several objects, for models that answer with one box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pixelthink.data.base import ImageSource, SampleSource
from pixelthink.data.images import ImageOpener
from pixelthink.errors import UserError
from pixelthink.geometry import target_from_mask
from pixelthink.types import Sample


class SingleTarget(ImageSource):
    """Makes the whole mask of each sample its one target, as ReasonSeg's evaluation takes it.

    Args:
        samples: Samples with any number of objects; one without any is an error, for a box cannot say so.
    """

    def __init__(self, samples: SampleSource) -> None:
        self.samples = samples

    def setup(self) -> None:
        self.samples.setup()

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int, open_image: ImageOpener) -> Sample:
        sample = self.samples.read(index, open_image)
        if sample.mask is None or not sample.mask.any():
            unknown = "an unknown mask" if sample.mask is None else "no target"
            raise UserError(f"sample {sample.id!r} has {unknown}, so it cannot have a single target")
        return replace(sample, targets=(target_from_mask(sample.mask),))

    def ids(self) -> Sequence[str]:
        return self.samples.ids()
