"""A source as evaluation reads it: numbered, and whole even where an image has vanished since the run began."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from pixelthink.data.base import SampleSource
from pixelthink.data.images import ImageLost
from pixelthink.types import Sample

PLACEHOLDER_QUESTION = "(the image is lost)"


class EvaluatedSource:
    """The samples of a source with their positions; one whose image file is gone says so instead of raising.

    Only a file that is not there is taken so, for everything else that is wrong with a sample, a damaged image
    included, is an error that names it: what was never there is refused by the source's `setup`, or by the module where
    not one image could be found.

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
            lost = _lost_image(error)
            if lost is None:
                raise
            placeholder = Image.new("RGB", (1, 1))
            name, shared = self._name(index), self._object(index)
            return Sample(name, placeholder, PLACEHOLDER_QUESTION, index=index, lost=str(lost), object_id=shared)

    def _name(self, index: int) -> str:
        """The sample's id, or its number where its source knows ids by reading images only."""
        try:
            return self.source.ids()[index]
        except ImageLost:
            return f"#{index}"

    def _object(self, index: int) -> str | None:
        """What the sample asks for; None where its source knows that by reading images only."""
        try:
            return self.source.object_id(index)
        except ImageLost:
            return None


def _lost_image(error: BaseException | None) -> ImageLost | None:
    """The `ImageLost` among an error and those that led to it, which sources may have worded anew."""
    while error is not None and not isinstance(error, ImageLost):
        error = error.__cause__ or error.__context__
    return error
