"""A source as evaluation reads it: numbered, and whole even where an image has vanished or cannot be read."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from pixelthink.data.base import SampleSource
from pixelthink.data.images import UnusableImage, blank_images
from pixelthink.types import MissingImage, Sample

PLACEHOLDER_QUESTION = "(the image is lost)"


class EvaluatedSource:
    """The samples of a source with their positions; one whose image is gone or damaged says so instead of raising.

    Such a sample has all that its source knows without the image: id, question, difficulty, and mask and targets where
    the image's size is known, from the annotations or from what is left of the file. Everything else that is wrong with
    a sample, a mask of another size say, is an error of the data set: it is raised and names the sample.

    Args:
        source: The samples, set up.
    """

    def __init__(self, source: SampleSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        try:
            return replace(self.source[index], index=index)
        except ValueError as error:
            unusable = _unusable_image(error)
            if unusable is None:
                raise
            missing = MissingImage(unusable.cause, str(unusable))
        return replace(self._without_image(index), index=index, missing=missing)

    def _without_image(self, index: int) -> Sample:
        """What the source knows of a sample without its image.

        Raises:
            ValueError: what it knows does not fit together.
        """
        try:
            with blank_images() as blanks:
                sample = self.source[index]
        except ValueError:
            if blanks.sizes_known:
                raise
            return Sample(self._name(index), Image.new("RGB", (1, 1)), PLACEHOLDER_QUESTION)
        return sample if blanks.sizes_known else replace(sample, mask=None, ignore=None, targets=())

    def _name(self, index: int) -> str:
        """The sample's id, or its number where its source has to read the image to know it."""
        try:
            return self.source.ids()[index]
        except ValueError:
            return f"#{index}"


def _unusable_image(error: BaseException | None) -> UnusableImage | None:
    """The `UnusableImage` among an error and those that led to it, which sources may have worded anew."""
    while error is not None and not isinstance(error, UnusableImage):
        error = error.__cause__ or error.__context__
    return error
