"""labelme folders: an image and a JSON file of shapes, asked for by label."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from pixelthink.data.base import BadRow, RowSource
from pixelthink.data.images import ImageOpener, open_mask
from pixelthink.data.reading import existing_folder, read_json
from pixelthink.data.reasonseg import read_points
from pixelthink.errors import FileError
from pixelthink.geometry import target_from_mask
from pixelthink.types import Sample

POINTS = {"rectangle": 2, "circle": 2, "mask": 2}
"""Number of points of each shape type but "polygon", which has 3 or more."""


@dataclass(frozen=True)
class LabelMeRow:
    """A question about an image; `objects` has the numbers of the shapes of each object, `ignored` those left out."""

    id: str
    file: Path
    image: Path
    question: str
    objects: tuple[tuple[int, ...], ...]
    ignored: tuple[int, ...]


class LabelMe(RowSource[LabelMeRow]):
    """Objects of a labelme folder, asked for by what is written about them.

    Shapes with one label and one `group_id` are one object. Shapes with "ignore" in their label are ignored pixels of
    every sample of their image.

    Args:
        root: Folder of `X.json`; the image is the file's `imagePath`, beside it.
        query: "label", or "description", the text that labelme 5 keeps for each shape.
        group: "query": all objects of an image with the same query are one sample with several targets, for a label
            does not say which one. "object": each object is a sample.
    """

    def __init__(
        self,
        root: str,
        query: Literal["label", "description"] = "label",
        group: Literal["query", "object"] = "query",
    ) -> None:
        self.root = root
        self.query = query
        self.group = group

    def read_rows(self) -> list[LabelMeRow | BadRow]:
        folder = existing_folder(self.root)
        rows: list[LabelMeRow | BadRow] = []
        for file in sorted(folder.glob("*.json")):
            try:
                rows += _read_file(file, self.query, self.group)
            except ValueError as error:
                rows.append(BadRow(file.stem, str(error)))
        if not rows:
            raise FileError(f"{folder}: no labelme file with a shape to ask for in this folder")
        return rows

    def make_sample(self, row: LabelMeRow, open_image: ImageOpener) -> Sample:
        image = open_image(row.image)
        shapes = read_json(row.file)["shapes"]
        try:
            objects = [_union(shapes, members, image.height, image.width) for members in row.objects]
            ignore = _union(shapes, row.ignored, image.height, image.width)
            for members, one in zip(row.objects, objects, strict=True):
                if not one.any():
                    raise FileError(f"shape {members[0]} covers no pixel of the image")
        except ValueError as error:
            raise FileError(f"{row.file}: {error}") from None
        mask = np.logical_or.reduce(objects)
        return Sample(
            id=row.id,
            image=image,
            question=row.question,
            mask=mask,
            ignore=ignore & ~mask,
            targets=tuple(target_from_mask(one) for one in objects),
            meta={"file": str(row.image), "image_id": row.file.stem},
        )


def shape_mask(shape: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """Mask of a labelme shape, bool (height, width), rasterised as labelme does: outline plus filling.

    A shape is `{shape_type, points}` with type "polygon", "rectangle" or "circle" (centre, a point on it), or "mask"
    (two corners, and the pixels between them as a PNG in base64). Parts beyond the image are cut off.

    Raises:
        FileError: a type without an area, or points that are not of its form.
    """
    kind = shape.get("shape_type") or "polygon"
    points = [(float(x), float(y)) for x, y in read_points(shape.get("points"))]
    if kind not in POINTS and kind != "polygon":
        raise FileError(f"a {kind} has no area; polygon, rectangle, circle and mask have")
    if len(points) < 3 if kind == "polygon" else len(points) != POINTS[kind]:
        raise FileError(f"a {kind} needs {POINTS.get(kind, '3 or more')} points, got {len(points)}")
    if kind == "mask":
        return _pasted(shape.get("mask"), points[0], height, width)
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    if kind == "circle":
        (x, y), radius = points[0], math.dist(*points)
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=1, fill=1)
    elif kind == "rectangle":
        (x1, y1), (x2, y2) = points
        draw.rectangle([min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)], outline=1, fill=1)
    else:
        draw.polygon(points, outline=1, fill=1)
    return np.array(canvas, dtype=bool)


def _read_file(file: Path, query: str, group: str) -> list[LabelMeRow]:
    """The samples of one file; none for a JSON file of another kind."""
    data = read_json(file)
    if not isinstance(data, dict) or "shapes" not in data or "imagePath" not in data:
        return []
    if not isinstance(data["shapes"], list) or not isinstance(data["imagePath"], str):
        raise FileError(f"{file}: shapes is no list, or imagePath no text")
    image = file.parent / data["imagePath"].replace("\\", "/")
    objects: dict[tuple[str, object], list[int]] = {}
    ignored: list[int] = []
    for number, shape in enumerate(data["shapes"]):
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise FileError(f"{file}: shape {number} has no label")
        if "ignore" in shape["label"].lower():
            ignored.append(number)
            continue
        text = shape.get(query)
        if not isinstance(text, str) or not text.strip():
            raise FileError(f"{file}: shape {number} ({shape['label']}) has no {query}")
        joined = shape.get("group_id")
        objects.setdefault((text, f"shape {number}" if joined is None else joined), []).append(number)
    questions: dict[tuple[object, ...], list[tuple[int, ...]]] = {}
    for key, members in objects.items():
        questions.setdefault(key[:1] if group == "query" else key, []).append(tuple(members))
    return [
        LabelMeRow(f"{file.stem}#{number}", file, image, str(key[0]), tuple(shapes), tuple(ignored))
        for number, (key, shapes) in enumerate(questions.items())
    ]


def _union(shapes: list[Mapping[str, Any]], members: tuple[int, ...], height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    for number in members:
        try:
            mask |= shape_mask(shapes[number], height, width)
        except ValueError as error:
            raise FileError(f"shape {number} ({shapes[number]['label']}): {error}") from None
    return mask


def _pasted(data: object, corner: tuple[float, float], height: int, width: int) -> np.ndarray:
    """labelme's "mask": a PNG with its upper left pixel at a corner."""
    try:
        png = base64.b64decode(data if isinstance(data, str) else "", validate=True)
    except (binascii.Error, ValueError):
        png = b""
    part = open_mask(png, "its mask")
    x, y = int(corner[0]), int(corner[1])
    mask = np.zeros((height, width), dtype=bool)
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + part.shape[1], width), min(y + part.shape[0], height)
    if left < right and top < bottom:
        mask[top:bottom, left:right] = part[top - y : bottom - y, left - x : right - x]
    return mask
