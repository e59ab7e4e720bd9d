"""The data swap point: where samples come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pixelthink.types import Sample


class SampleSource(ABC):
    """A finite, indexable collection of samples. `source[i]` is the same sample whenever it is asked for.

    What concerns the whole set is an error of `setup` (a folder that is not there, a difficulty that is missing); what
    concerns one row is an error of that row's `source[i]`, so that `tools/prepare_data.py` can name every bad row.
    """

    def setup(self) -> None:  # noqa: B027
        """Opens files. Constructors stay cheap; a source that needs no files has nothing to do here."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample `index`.

        Raises:
            IndexError: outside 0 … len − 1.
            ValueError: for a sample that cannot be used; names the file or row and says why.
        """

    def ids(self) -> Sequence[str]:
        """The ids of all samples, in order. A source that knows them without reading images overrides this."""
        return [self[index].id for index in range(len(self))]
