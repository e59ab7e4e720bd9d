"""ReasonSeg: a folder of `X.jpg` + `X.json`, polygons and questions (LISA, arXiv 2308.00692)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pixelthink.data.base import BadRow, RowSource
from pixelthink.data.difficulty import DifficultyFaults
from pixelthink.data.images import ImageOpener
from pixelthink.data.reading import existing_folder, read_json
from pixelthink.data.reasonseg import rasterize
from pixelthink.errors import FileError, UserError
from pixelthink.geometry import target_from_mask
from pixelthink.types import Sample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class ReasonSegRow:
    """A question, with its image file and the parsed annotation file."""

    id: str
    image: Path
    annotation_file: Path
    annotation: Mapping[str, Any]
    question: str


class ReasonSeg(RowSource[ReasonSegRow]):
    """Samples of a ReasonSeg folder, in the order of their file names; the texts of an image ask for one object.

    `X.json` is read as UTF-8, else as cp1252; the image is read upright (`images.open_rgb`). The target is the whole
    mask with one box. Other JSON files, without "text" and without an image of their name, may lie beside. Broken JSON,
    an empty text or an image without annotation is the error of its row.

    Args:
        root: The folder.
        texts: `"first"`: one sample an image, asked by its first text, as the released evaluation does; its id is `X`.
            `"all"`: one sample a text, with ids `X#0`, `X#1`, ….
        difficulty_file: JSON list of `{"image_id": X, "difficulty_score_model": 1…10}`; without it samples have no
            difficulty, with it each needs one.
        difficulty: What to do with samples for which the file has no usable rating.
    """

    def __init__(
        self,
        root: str,
        texts: Literal["first", "all"] = "first",
        difficulty_file: str | None = None,
        difficulty: DifficultyFaults = DifficultyFaults(),
    ) -> None:
        if texts not in ("first", "all"):
            raise UserError(f"texts must be 'first' or 'all', got {texts!r}")
        self.root = root
        self.texts = texts
        self.difficulty_file = difficulty_file
        self.difficulty = difficulty

    def read_rows(self) -> list[ReasonSegRow | BadRow]:
        folder = existing_folder(self.root)
        images = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}
        files = {path.stem: path for path in sorted(folder.glob("*.json"))}
        rows: list[ReasonSegRow | BadRow] = []
        for stem in sorted(images.keys() | files.keys()):
            image = images.get(stem, folder / f"{stem}.jpg")
            try:
                rows += _read_pair(stem, folder / f"{stem}.json", image, self.texts)
            except ValueError as error:
                rows.append(BadRow(stem, str(error)))
        if not rows:
            raise FileError(f"{folder}: no pairs of X.jpg and X.json in this folder")
        return rows

    def make_sample(self, row: ReasonSegRow, open_image: ImageOpener) -> Sample:
        image = open_image(row.image)
        try:
            target, ignore = rasterize(row.annotation, image.height, image.width)
        except ValueError as error:
            raise FileError(f"{row.annotation_file}: {error}") from None
        return Sample(
            id=row.id,
            image=image,
            question=row.question,
            mask=target,
            ignore=ignore,
            targets=(target_from_mask(target),) if target.any() else (),
            meta={"file": str(row.image), "is_sentence": bool(row.annotation.get("is_sentence", False))},
            object_id=row.image.stem,
        )


def _read_pair(stem: str, file: Path, image: Path, texts: str) -> list[ReasonSegRow]:
    """The samples of one image; none for a JSON file of another kind."""
    if not file.is_file():
        raise FileError(f"{image}: there is no annotation {stem}.json beside it")
    annotation = read_json(file)
    if not image.is_file() and not (isinstance(annotation, dict) and "text" in annotation):
        return []
    if not isinstance(annotation, dict) or not isinstance(annotation.get("shapes"), list):
        raise FileError(f'{file}: a ReasonSeg annotation is an object with "text" and a list of "shapes"')
    questions = annotation.get("text")
    questions = [questions] if isinstance(questions, str) else questions
    if not isinstance(questions, list) or not questions:
        raise FileError(f'{file}: "text" must hold at least one question')
    for number, text in enumerate(questions):
        if not isinstance(text, str) or not text.strip():
            raise FileError(f"{file}: text {number} is empty")
    names = {stem: questions[0]} if texts == "first" else {f"{stem}#{n}": text for n, text in enumerate(questions)}
    return [ReasonSegRow(name, image, file, annotation, text) for name, text in names.items()]
