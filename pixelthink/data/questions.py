"""Anyone's images and questions, to be answered: one image, a folder, or a table of rows; the truth is unknown.

What a run will need is looked at before it starts: `setup` refuses a file that is not there, and names it.
"""

from __future__ import annotations

import csv
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelthink.data.base import SampleSource
from pixelthink.data.images import open_rgb
from pixelthink.files.jsonl import read_rows, row_error
from pixelthink.types import Sample

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Names of image files end so, in any case."""

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


@dataclass(frozen=True)
class Question:
    """One image file and what is asked of it; `id` is unique within its source."""

    id: str
    image: Path
    question: str


class QuestionSource(SampleSource):
    """Questions about image files; images are opened one by one as they are asked for."""

    _questions: Sequence[Question] | None = None

    @abstractmethod
    def read(self) -> list[Question]:
        """The questions, in order.

        Raises:
            ValueError: a file that is not there or cannot be used; one line that names it.
        """

    def setup(self) -> None:
        """Reads the questions; raises what `read` raises."""
        if self._questions is None:
            self._questions = self.read()

    def __len__(self) -> int:
        return len(self._opened())

    def __getitem__(self, index: int) -> Sample:
        asked = self._opened()[index]
        return Sample(asked.id, open_rgb(asked.image), asked.question, meta={"file": str(asked.image)})

    def ids(self) -> list[str]:
        return [asked.id for asked in self._opened()]

    def _opened(self) -> Sequence[Question]:
        if self._questions is None:
            raise RuntimeError("call setup() before reading samples")
        return self._questions


class OneImage(QuestionSource):
    """One image and one question.

    Args:
        image: The image file, of any size; its name is the sample's id.
        question: What to ask.
    """

    def __init__(self, image: str, question: str) -> None:
        self.image = image
        self.question = question

    def read(self) -> list[Question]:
        path = Path(self.image)
        return [Question(path.stem, _existing_image(path), _asked(self.question, "the question"))]


class ImageFolder(QuestionSource):
    """All images of a folder, asked the same question, in the order of their names.

    A sample's id is the image's path within the folder, without its ending where that says enough.

    Args:
        root: The folder. Files that are no images by their ending may lie beside.
        question: What to ask.
        recursive: Look into the folder's folders too.
    """

    def __init__(self, root: str, question: str, recursive: bool = False) -> None:
        self.root = root
        self.question = question
        self.recursive = recursive

    def read(self) -> list[Question]:
        folder = Path(self.root)
        if not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder")
        question = _asked(self.question, "the question")
        found = folder.rglob("*") if self.recursive else folder.glob("*")
        images = sorted(file for file in found if file.suffix.lower() in PHOTO_SUFFIXES and file.is_file())
        if not images:
            raise ValueError(f"{folder}: no image in this folder (endings looked for: {', '.join(PHOTO_SUFFIXES)})")
        paths = [image.relative_to(folder) for image in images]
        stems = Counter(path.with_suffix("") for path in paths)
        names = [path if stems[path.with_suffix("")] > 1 else path.with_suffix("") for path in paths]
        return [Question(name.as_posix(), image, question) for name, image in zip(names, images, strict=True)]


class QuestionTable(QuestionSource):
    """Rows of image and question in a CSV or JSON Lines file.

    A CSV file begins with a line of column names. The columns (keys) are `image`, a path that is absolute or begins at
    the table's folder, `question`, and optionally `id`; without one, the id is the image's name and the row's number.
    Others are not read. Rows are read one at a time, and only their texts are kept.

    Args:
        path: The table; UTF-8. A name that ends in .jsonl or .ndjson (also .gz of it) is JSON Lines, .csv is CSV.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> list[Question]:
        path = Path(self.path)
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file")
        name = path.name.lower()
        if name.endswith(JSONL_SUFFIXES):
            rows = read_rows(path)
        elif name.endswith(".csv"):
            rows = _csv_rows(path)
        else:
            raise ValueError(f"{path}: a table of questions ends in .csv, {', '.join(JSONL_SUFFIXES)}")
        questions: list[Question] = []
        first_row: dict[str, int] = {}
        for number, row in rows:
            try:
                questions.append(_question_of(row, number, path.parent))
                if (earlier := first_row.setdefault(questions[-1].id, number)) != number:
                    raise ValueError(f"id {questions[-1].id!r} occurs already in row {earlier}")
            except ValueError as error:
                raise row_error(path, number, error) from None
        if not questions:
            raise ValueError(f"{path}: no rows")
        return questions


def _question_of(row: dict[str, Any], number: int, folder: Path) -> Question:
    """The question of a row.

    Raises:
        ValueError: what is wrong with it.
    """
    for key in ("image", "question"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise ValueError(f"no {key}" if row.get(key) in (None, "") else f"{key} must be text, not {row[key]!r:.40}")
    image = _existing_image(folder / row["image"])
    name = row.get("id")
    if name in (None, ""):
        return Question(f"{image.stem}-{number}", image, row["question"])
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError(f"id must be text or a whole number, not {name!r:.40}")
    return Question(str(name), image, row["question"])


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """`(line, row)` of a CSV file, where `line` is the one on which the row ends.

    Raises:
        ValueError: not UTF-8, not CSV, without the columns that are needed, or a row of another length; one line.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            columns = reader.fieldnames or ()
            if missing := [name for name in ("image", "question") if name not in columns]:
                named = ", ".join(columns) or "none"
                raise ValueError(f"{path}:1: no column {' or '.join(missing)} in the first line (there: {named:.100})")
            for row in reader:
                if None in row or None in row.values():
                    raise row_error(path, reader.line_num, f"the row does not have {len(columns)} fields")
                yield reader.line_num, row
        except csv.Error as error:
            raise row_error(path, reader.reader.line_num, f"not CSV: {error}") from None
        except UnicodeDecodeError:
            raise row_error(path, _undecodable_line(path), "not UTF-8 text") from None


def _undecodable_line(path: Path) -> int:
    """Number of the first line that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    raise AssertionError(f"{path} has become UTF-8")


def _existing_image(path: Path) -> Path:
    if not os.path.isfile(path):  # False for names that no file can have, too
        raise ValueError(f"{path}: there is no such image")
    return path


def _asked(question: str, name: str) -> str:
    if not question.strip():
        raise ValueError(f"{name} is empty")
    return question
