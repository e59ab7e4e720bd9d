"""The data swap point: where samples come from, and what sources share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from pixelthink.data.difficulty import DifficultyFaults, difficulties_for
from pixelthink.data.images import ImageOpener, open_rgb
from pixelthink.errors import FileError
from pixelthink.types import Sample


class SampleSource(ABC):
    """A finite, indexable collection of samples. `source[i]` is the same sample every time.

    `setup` reports what is wrong with the whole set, e.g. a missing folder. `source[i]` reports what is wrong with one
    sample, so that `tools/prepare_data.py` can name every bad one.
    """

    def setup(self) -> None:  # noqa: B027
        """Opens files; constructors stay cheap. A source without files has nothing to do here."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample `index`.

        Raises:
            IndexError: outside 0 … len − 1.
            UserError: a sample that cannot be used; names the file or row and says why.
        """

    def read(self, index: int, open_image: ImageOpener) -> Sample:
        """Sample `index`, with its image opened by `open_image`; only an `ImageSource` makes use of the opener."""
        return self[index]

    def ids(self) -> Sequence[str]:
        """The ids of all samples, in order. A source that knows them without reading images overrides this."""
        return [self[index].id for index in range(len(self))]


class ImageSource(SampleSource):
    """Samples with image files. Such a source writes `read` in place of `__getitem__`.

    Evaluation passes an opener that gives a blank image in place of a missing one. So the sample still has all that its
    source knows without the image: id, question, difficulty, object and target.
    """

    @abstractmethod
    def read(self, index: int, open_image: ImageOpener) -> Sample:
        """As `__getitem__`, with every image opened by `open_image(file, name, size)`, see `images.open_rgb`."""

    def __getitem__(self, index: int) -> Sample:
        return self.read(index, open_rgb)


@dataclass(frozen=True)
class BadRow:
    """A sample that cannot be made: its id, and the error of its `source[i]`."""

    id: str
    problem: str


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


Row = TypeVar("Row", bound=_HasId)


class RowSource(ImageSource, Generic[Row]):
    """A source that reads a row for each sample in `setup`, and opens the images one by one as they are asked for."""

    difficulty_file: str | None = None
    """JSON list of `{"image_id": id, "difficulty_score_model": 1…10}`; with it each sample needs a difficulty."""

    difficulty: DifficultyFaults = DifficultyFaults()
    """What to do where the file has no usable rating of a sample."""

    _rows: Sequence[Row | BadRow] | None = None
    _difficulties: Mapping[str, float]

    @abstractmethod
    def read_rows(self) -> Sequence[Row | BadRow]:
        """What is known of each sample without its image.

        Raises:
            UserError: the whole set cannot be used; one line that names the file.
        """

    @abstractmethod
    def make_sample(self, row: Row, open_image: ImageOpener) -> Sample:
        """The sample of a row; raises as `__getitem__`."""

    def setup(self) -> None:
        """Reads the rows and their difficulties; raises as `read_rows` and `difficulties_for`."""
        if self._rows is None:
            rows = self.read_rows()
            usable = [row.id for row in rows if not isinstance(row, BadRow)]
            self._difficulties = difficulties_for(self.difficulty_file, usable, self.difficulty)
            if self.difficulty.on_fault == "drop":
                rows = [row for row in rows if isinstance(row, BadRow) or row.id in self._difficulties]
            self._rows = rows

    @property
    def rows(self) -> Sequence[Row | BadRow]:
        """The rows."""
        if self._rows is None:
            raise RuntimeError("call setup() before reading samples")
        return self._rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int, open_image: ImageOpener) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{type(self).__name__} has {len(self)} samples, there is no number {index}")
        row = self.rows[index]
        if isinstance(row, BadRow):
            raise FileError(row.problem)
        sample = self.make_sample(row, open_image)
        return replace(sample, difficulty=self._difficulties.get(row.id, sample.difficulty))

    def ids(self) -> list[str]:
        return [row.id for row in self.rows]
