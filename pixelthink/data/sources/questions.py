"""Anyone's images and questions, to be answered: one image, a folder, or a table of rows; the truth is unknown.

`setup` refuses a file that is not there, so that a missing image is found before the run starts.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelthink.data.base import RowSource
from pixelthink.data.images import ImageOpener
from pixelthink.data.reading import existing_folder, read_bytes
from pixelthink.errors import FileError, MissingFileError, UserError
from pixelthink.files.jsonl import read_rows, row_error
from pixelthink.types import Sample

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Names of image files end so, in any case."""

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


@dataclass(frozen=True)
class Question:
    """One image file and a question about it; `id` is unique within its source."""

    id: str
    image: Path
    question: str


class QuestionSource(RowSource[Question]):
    """Questions about image files."""

    def make_sample(self, row: Question, open_image: ImageOpener) -> Sample:
        return Sample(row.id, open_image(row.image), row.question, meta={"file": str(row.image)})


class OneImage(QuestionSource):
    """One image and one question.

    Args:
        image: The image file, of any size; its name is the sample's id.
        question: What to ask.
    """

    def __init__(self, image: str, question: str) -> None:
        self.image = image
        self.question = question

    def read_rows(self) -> list[Question]:
        path = _existing_image(Path(self.image))
        return [Question(path.stem, path, _not_empty(self.question))]


class ImageFolder(QuestionSource):
    """All images of a folder, asked the same question, in the order of their names.

    A sample's id is the image's path within the folder, without its ending where that is unique.

    Args:
        root: The folder. Files with other endings than those of images may lie beside.
        question: What to ask.
        recursive: Look into the folder's folders too.
    """

    def __init__(self, root: str, question: str, recursive: bool = False) -> None:
        self.root = root
        self.question = question
        self.recursive = recursive

    def read_rows(self) -> list[Question]:
        folder = existing_folder(self.root)
        question = _not_empty(self.question)
        found = folder.rglob("*") if self.recursive else folder.glob("*")
        images = sorted(file for file in found if file.suffix.lower() in PHOTO_SUFFIXES and file.is_file())
        if not images:
            raise FileError(f"{folder}: no image in this folder (endings looked for: {', '.join(PHOTO_SUFFIXES)})")
        stems = Counter(image.with_suffix("") for image in images)
        names = [image if stems[image.with_suffix("")] > 1 else image.with_suffix("") for image in images]
        return [
            Question(name.relative_to(folder).as_posix(), image, question)
            for name, image in zip(names, images, strict=True)
        ]


class QuestionTable(QuestionSource):
    """Rows of image and question in a CSV or JSON Lines file.

    A CSV file begins with a line of column names. The columns (keys) are `image`, a path that is absolute or begins at
    the table's folder, `question`, and optionally `id`; without one, the id is the image's name and the row's number.
    Others are not read.

    Args:
        path: The table; UTF-8. A name that ends in .jsonl or .ndjson (also .gz of it) is JSON Lines, .csv is CSV.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def read_rows(self) -> list[Question]:
        path = Path(self.path)
        if not path.is_file():
            raise MissingFileError(f"{path}: there is no such file")
        name = path.name.lower()
        if not name.endswith((*JSONL_SUFFIXES, ".csv")):
            raise FileError(f"{path}: a table of questions ends in .csv, {', '.join(JSONL_SUFFIXES)}")
        questions: list[Question] = []
        first_row: dict[str, int] = {}
        for number, row in _csv_rows(path) if name.endswith(".csv") else read_rows(path):
            try:
                questions.append(_question_of(row, number, path.parent))
                if (earlier := first_row.setdefault(questions[-1].id, number)) != number:
                    raise FileError(f"id {questions[-1].id!r} occurs already in row {earlier}")
            except ValueError as error:
                raise row_error(path, number, error) from None
        if not questions:
            raise FileError(f"{path}: no rows")
        return questions


def _question_of(row: dict[str, Any], number: int, folder: Path) -> Question:
    """The question of a row; raises FileError where there is none."""
    for key in ("image", "question"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise FileError(f"no {key}" if row.get(key) in (None, "") else f"{key} must be text, not {row[key]!r:.40}")
    image = _existing_image(folder / row["image"])
    name = row.get("id")
    if name in (None, ""):
        return Question(f"{image.stem}-{number}", image, row["question"])
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise FileError(f"id must be text or a whole number, not {name!r:.40}")
    return Question(str(name), image, row["question"])


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """`(line, row)` of a CSV file; a row that spans lines has the number of its last.

    Raises:
        FileError: not UTF-8, not CSV, without the columns that are needed, or a row of another length; one line.
    """
    data = read_bytes(path)
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        columns = reader.fieldnames or ()
        if missing := [name for name in ("image", "question") if name not in columns]:
            named = ", ".join(columns) or "none"
            raise FileError(f"{path}:1: no column {' or '.join(missing)} in the first line (there: {named:.100})")
        for row in reader:
            if None in row or None in row.values():
                raise row_error(path, reader.line_num, f"the row does not have {len(columns)} fields")
            yield reader.line_num, row
    except csv.Error as error:
        raise row_error(path, reader.reader.line_num, f"not CSV: {error}") from None
    except UnicodeDecodeError as error:
        raise row_error(path, 1 + data.count(b"\n", 0, error.start), "not UTF-8 text") from None


def _existing_image(path: Path) -> Path:
    if not os.path.isfile(path):  # False for names that no file can have, too
        raise MissingFileError(f"{path}: there is no such image")
    return path


def _not_empty(question: str) -> str:
    if not question.strip():
        raise UserError("the question is empty")
    return question
