"""A source as evaluation reads it: samples know their position, and one with a missing image does not stop the run."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from pixelthink.data.base import SampleSource
from pixelthink.data.images import BlankImages, UnusableImage
from pixelthink.types import MissingImage, Sample

PLACEHOLDER_QUESTION = "(the image is missing)"


class EvaluationDataset:
    """The samples of a source with their positions; one with a missing or damaged image has `Sample.missing`.

    Such a sample has all that its source knows without the image: id, question, difficulty, and mask and targets where
    the image's size is known. Anything else that is wrong with a sample, e.g. a mask of another size, is raised.

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
            ValueError: the sample is wrong in another way too.
        """
        blanks = BlankImages()
        try:
            sample = self.source.read(index, blanks)
        except ValueError as error:
            if blanks.sizes_known and _unusable_image(error) is None:
                raise
            return Sample(self._id(index), Image.new("RGB", (1, 1)), PLACEHOLDER_QUESTION)
        return sample if blanks.sizes_known else replace(sample, mask=None, ignore=None, targets=())

    def _id(self, index: int) -> str:
        """The sample's id, or its number where its source has to read the image to know it."""
        try:
            return self.source.ids()[index]
        except ValueError:
            return f"#{index}"


def _unusable_image(error: BaseException | None) -> UnusableImage | None:
    """The `UnusableImage` in an error's chain of causes; sources word it anew to name the row."""
    while error is not None and not isinstance(error, UnusableImage):
        error = error.__cause__ or error.__context__
    return error
