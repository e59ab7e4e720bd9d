"""ReasonSeg: a folder of `X.jpg` + `X.json`, polygons and questions (LISA, arXiv 2308.00692)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pixelthink.data.base import SampleSource
from pixelthink.data.difficulty import difficulties_for
from pixelthink.data.files import read_json
from pixelthink.data.images import open_rgb
from pixelthink.geometry import target_from_mask
from pixelthink.types import Sample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_COORDINATE = 1e6
TARGET, IGNORE = 1, 2


def rasterize(annotation: Mapping[str, Any], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the shapes of a ReasonSeg annotation.

    A shape whose label contains "ignore" (any case) is ignored, one labelled "flag" is skipped, any other is target.
    A polygon is its outline plus its filling, with coordinates cut to whole pixels. Shapes are painted largest first,
    so that smaller ones overwrite.

    Args:
        annotation: The parsed JSON, of which only `shapes[{label, points}]` is read.
        height: Height of the image.
        width: Width of the image.

    Returns:
        `(target, ignore)`, each bool (height, width), disjoint.

    Raises:
        ValueError: shapes that are not of this form, or a polygon with fewer than 3 points (a skipped shape may have
            any). One line that names the shape.
    """
    polygons = [
        (_paint(points, height, width), IGNORE if "ignore" in label else TARGET)
        for label, points in _read_shapes(annotation)
        if label != "flag"
    ]
    canvas = np.zeros((height, width), dtype=np.uint8)
    # Reversed, as the released reader sorts: of two shapes of equal area, the earlier one is painted last.
    for index in np.argsort([int(painted.sum()) for painted, _ in polygons], kind="stable")[::-1]:
        painted, value = polygons[index]
        canvas[painted] = value
    return canvas == TARGET, canvas == IGNORE


@dataclass(frozen=True)
class _Row:
    """One sample to be; where `problem` is set, it cannot be made and the rest is not filled in."""

    id: str
    image: Path
    annotation_file: Path
    annotation: Mapping[str, Any]
    question: str
    problem: str | None = None


class ReasonSeg(SampleSource):
    """Samples of a ReasonSeg folder, in the order of their file names; the texts of an image ask for one object.

    `X.json` is read as UTF-8, else as cp1252; the image is read upright (`images.open_rgb`). The target is the whole
    mask with one box. JSON files that are no ReasonSeg annotations, i.e. without "text" and without an image of their
    name, may lie beside.

    Args:
        root: The folder.
        texts: `"first"`: one sample an image, asked by its first text, as the released evaluation does; its id is `X`.
            `"all"`: one sample a text, with ids `X#0`, `X#1`, ….
        difficulty_file: JSON list of `{"image_id": X, "difficulty_score_model": 1…10}`; without it samples have no
            difficulty, with it each needs one.
    """

    def __init__(self, root: str, texts: Literal["first", "all"] = "first", difficulty_file: str | None = None) -> None:
        if texts not in ("first", "all"):
            raise ValueError(f"texts must be 'first' or 'all', got {texts!r}")
        self.root = root
        self.texts = texts
        self.difficulty_file = difficulty_file
        self._rows: list[_Row] | None = None
        self._difficulties: dict[str, float] | None = None

    def setup(self) -> None:
        """Reads the annotations and difficulties; images are opened one by one as they are asked for.

        Broken JSON, an empty text or an image without annotation is a row like any other, and the error of that row; so
        is an annotation whose image is not there.

        Raises:
            ValueError: a folder without samples, a difficulty that is missing or not in 1…10. One line that names the
                file.
        """
        if self._rows is not None:
            return
        folder = Path(self.root)
        if not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder")
        rows = _read_folder(folder, self.texts)
        if not rows:
            raise ValueError(f"{folder}: no pairs of X.jpg and X.json in this folder")
        if self.difficulty_file is not None:
            usable = [row.id for row in rows if row.problem is None]
            self._difficulties = difficulties_for(self.difficulty_file, usable)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._loaded())

    def __getitem__(self, index: int) -> Sample:
        row = self._loaded()[index]
        if row.problem is not None:
            raise ValueError(row.problem)
        image = open_rgb(row.image)
        try:
            target, ignore = rasterize(row.annotation, image.height, image.width)
        except ValueError as error:
            raise ValueError(f"{row.annotation_file}: {error}") from None
        return Sample(
            id=row.id,
            image=image,
            question=row.question,
            mask=target,
            ignore=ignore,
            targets=(target_from_mask(target),) if target.any() else (),
            difficulty=None if self._difficulties is None else self._difficulties[row.id],
            meta={"file": str(row.image), "is_sentence": bool(row.annotation.get("is_sentence", False))},
            object_id=row.image.stem,
        )

    def ids(self) -> list[str]:
        return [row.id for row in self._loaded()]

    def _loaded(self) -> list[_Row]:
        if self._rows is None:
            raise RuntimeError("call setup() before reading samples")
        return self._rows


def _read_folder(folder: Path, texts: str) -> list[_Row]:
    images = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}
    files = {path.stem: path for path in sorted(folder.glob("*.json"))}
    rows: list[_Row] = []
    for stem in sorted(images.keys() | files.keys()):
        file, image = folder / f"{stem}.json", images.get(stem, folder / f"{stem}.jpg")
        try:
            rows += _read_pair(stem, file, image, texts)
        except ValueError as error:
            rows.append(_Row(stem, image, file, {}, "", problem=str(error)))
    return rows


def _read_pair(stem: str, file: Path, image: Path, texts: str) -> list[_Row]:
    """The samples of one image; none where the JSON file is something else that lies beside."""
    if not file.is_file():
        raise ValueError(f"{image}: there is no annotation {stem}.json beside it")
    annotation = read_json(file)
    if not image.is_file() and not (isinstance(annotation, dict) and "text" in annotation):
        return []
    questions = _questions(annotation, file)
    if texts == "first":
        return [_Row(stem, image, file, annotation, questions[0])]
    return [_Row(f"{stem}#{n}", image, file, annotation, text) for n, text in enumerate(questions)]


def _questions(annotation: object, file: Path) -> list[str]:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("shapes"), list):
        raise ValueError(f'{file}: a ReasonSeg annotation is an object with "text" and a list of "shapes"')
    texts = annotation.get("text")
    questions = [texts] if isinstance(texts, str) else texts
    if not isinstance(questions, list) or not questions:
        raise ValueError(f'{file}: "text" must hold at least one question')
    for number, text in enumerate(questions):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{file}: text {number} is empty")
    return questions


def _read_shapes(annotation: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
    """Lower-case label and float (N, 2) points of each shape."""
    shapes = annotation.get("shapes")
    if not isinstance(shapes, list):
        raise ValueError('the annotation has no list of "shapes"')
    return [_read_shape(number, shape) for number, shape in enumerate(shapes)]


def _read_shape(number: int, shape: object) -> tuple[str, np.ndarray]:
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
        raise ValueError(f"shape {number} has no label")
    label = shape["label"].lower()
    if label == "flag":
        return label, np.empty((0, 2))
    try:
        points = np.array(shape.get("points"), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f'shape {number} ({shape["label"]}): "points" must be a list of [x, y]')
    if len(points) < 3:
        raise ValueError(f"shape {number} ({shape['label']}): a polygon needs 3 points, got {len(points)}")
    if not all(math.isfinite(v) and abs(v) <= MAX_COORDINATE for v in points.ravel().tolist()):
        raise ValueError(f"shape {number} ({shape['label']}): a coordinate is not finite or beyond ±1,000,000")
    return label, points


def _paint(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """A polygon's outline and filling, bool (height, width)."""
    try:
        import cv2
    except ImportError:
        raise ImportError("ReasonSeg needs OpenCV: pip install opencv-python-headless") from None
    canvas = np.zeros((height, width), dtype=np.uint8)
    polygon = [points.astype(np.int32)]
    cv2.polylines(canvas, polygon, isClosed=True, color=1, thickness=1)
    cv2.fillPoly(canvas, polygon, color=1)
    return canvas.astype(bool)
