"""COCO instances: polygons or run lengths, asked for by category or by a caption of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from pixelthink.data.base import RowSource
from pixelthink.data.images import ImageOpener
from pixelthink.data.reading import read_json
from pixelthink.errors import FileError
from pixelthink.geometry import decode_rle, target_from_mask
from pixelthink.types import Sample

MAX_COORDINATE = 1e5


@dataclass
class InstancesRow:
    """One sample: ids of the annotations of an image that its question asks for, none where there is no target.

    Pixels of `crowds`, annotations of several objects at once, are ignored.
    """

    id: str
    image_id: int
    question: str
    annotations: list[int] = field(default_factory=list)
    crowds: list[int] = field(default_factory=list)
    object_id: str | None = None


@dataclass(frozen=True)
class Instances:
    """An instances file.

    Attributes:
        path: Where it came from.
        images: Image object by id.
        annotations: Annotation object by id.
        categories: Category object by id.
        licences: Licence object by id.
    """

    path: str
    images: Mapping[int, Mapping[str, Any]]
    annotations: Mapping[int, Mapping[str, Any]]
    categories: Mapping[int, Mapping[str, Any]]
    licences: Mapping[int, Mapping[str, Any]]

    def mask(self, annotation_id: int, height: int, width: int) -> np.ndarray:
        """Mask of one annotation, bool (height, width).

        Raises:
            FileError: there is no such annotation, or it draws no pixel of an image of this size; names it.
        """
        if annotation_id not in self.annotations:
            raise FileError(f"{self.path}: there is no annotation {annotation_id}")
        try:
            mask = coco_mask(self.annotations[annotation_id].get("segmentation"), height, width)
            if not mask.any():
                raise FileError("its segmentation covers no pixel of the image")
        except ValueError as error:
            raise FileError(f"{self.path}: annotation {annotation_id}: {error}") from None
        return mask

    def sample(self, row: InstancesRow, folder: str, open_image: ImageOpener) -> Sample:
        """The sample of a row; `folder` has the images.

        Raises:
            FileError: the image or an annotation cannot be used, or the image has another size than the file says.
        """
        if row.image_id not in self.images:
            raise FileError(f"{self.path}: there is no image {row.image_id}")
        record = self.images[row.image_id]
        file = Path(folder) / str(record.get("file_name"))
        width, height = record.get("width"), record.get("height")
        image = open_image(file, size=(width, height) if isinstance(width, int) and isinstance(height, int) else None)
        if None not in (width, height) and (width, height) != image.size:
            raise FileError(f"{file}: the image is {image.height} × {image.width}, {self.path} says {height} × {width}")
        nothing = np.zeros((image.height, image.width), dtype=bool)
        masks = [self.mask(annotation, *nothing.shape) for annotation in row.annotations]
        crowds = [self.mask(annotation, *nothing.shape) for annotation in row.crowds]
        target = np.logical_or.reduce([nothing, *masks])
        meta = {"file": str(file), "image_id": str(row.image_id), "annotations": list(row.annotations)}
        if licence := self.licences.get(record.get("license", -1), {}).get("name"):
            meta["licence"] = str(licence)
        return Sample(
            id=row.id,
            image=image,
            question=row.question,
            mask=target,
            ignore=np.logical_or.reduce(crowds) & ~target if crowds else None,
            targets=tuple(target_from_mask(mask) for mask in masks),
            meta=meta,
            object_id=row.object_id,
        )


def read_instances(path: str | Path) -> Instances:
    """Reads an instances file.

    Raises:
        FileError: not such a file; one line that names it.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise FileError(f"{path}: an instances file is an object with images, annotations and categories")
    licences = _by_id(data, "licenses", path) if data.get("licenses") else {}
    images, annotations, categories = (_by_id(data, key, path) for key in ("images", "annotations", "categories"))
    return Instances(str(path), images, annotations, categories, licences)


def coco_mask(segmentation: object, height: int, width: int) -> np.ndarray:
    """Mask of a COCO segmentation, bool (height, width), rasterised as pycocotools does.

    A segmentation is a list of polygons `[x1, y1, x2, y2, …]`, of which a pixel needs to be in one, or RLE with counts
    as a list, str or bytes. Polygons may reach beyond the image.

    Raises:
        FileError: neither, a polygon of fewer than 3 points, or RLE of another size.
    """
    from pycocotools import mask as coco

    if isinstance(segmentation, Mapping):
        mask = decode_rle(segmentation)
        if mask.shape != (height, width):
            raise FileError(f"the mask is {mask.shape[0]} × {mask.shape[1]}, the image {height} × {width}")
        return mask
    if not isinstance(segmentation, list) or not segmentation:
        raise FileError("segmentation must be a list of polygons or RLE")
    polygons = [_checked_polygon(number, polygon) for number, polygon in enumerate(segmentation)]
    rles = coco.frPyObjects(polygons, height, width)
    return np.asarray(coco.decode(coco.merge(rles)), dtype=bool)


class COCO(RowSource[InstancesRow]):
    """Objects of an instances file, asked for by name. Crowd regions are ignored pixels, not targets.

    Args:
        instances: The instances file.
        images: Folder of the images, found by `file_name`.
        query: "category" asks by the category's name, "caption" by the annotation's own text.
        group: "query": all objects of one image with the same query are one sample with several targets, for a
            category name does not say which one. "object": each object is a sample.
        caption_field: Field of an annotation that holds its caption.
    """

    def __init__(
        self,
        instances: str,
        images: str,
        query: Literal["category", "caption"] = "category",
        group: Literal["query", "object"] = "query",
        caption_field: str = "caption",
    ) -> None:
        self.instances = instances
        self.images = images
        self.query = query
        self.group = group
        self.caption_field = caption_field
        self._data: Instances | None = None

    def read_rows(self) -> list[InstancesRow]:
        self._data = read_instances(self.instances)
        rows, crowds = self._grouped(self._data)
        if not rows:
            raise FileError(f"{self.instances}: there is no annotation to ask for")
        note = f"; {crowds} of nothing but crowd regions are not asked for" if crowds else ""
        rank_zero_info(f"{self.instances}: {len(rows)} samples, one per {self.group}, by {self.query}{note}")
        return rows

    def make_sample(self, row: InstancesRow, open_image: ImageOpener) -> Sample:
        if not row.question.strip():
            raise FileError(f"{self.instances}: annotation {row.annotations[0]} has no {self.query}")
        return cast("Instances", self._data).sample(row, self.images, open_image)

    def _grouped(self, data: Instances) -> tuple[list[InstancesRow], int]:
        """Samples in the file's order, and how many were left out because they hold nothing but crowd regions."""
        rows: dict[tuple[int, object], InstancesRow] = {}
        for number, annotation in data.annotations.items():
            image_id, category = annotation.get("image_id"), annotation.get("category_id")
            if not isinstance(image_id, int) or not isinstance(category, int):
                raise FileError(f"{data.path}: annotation {number} has no image_id or category_id")
            named = self.query == "category"
            holder, key = (data.categories.get(category, {}), "name") if named else (annotation, self.caption_field)
            question = str(holder.get(key, ""))
            crowd = bool(annotation.get("iscrowd", 0))
            alone = self.group == "object" and not crowd
            place = (image_id, ("object", number) if alone else question)
            name = str(number) if alone else f"{image_id}#{category if named else number}"
            row = rows.setdefault(place, InstancesRow(name, image_id, question))
            (row.crowds if crowd else row.annotations).append(number)
        kept = [row for row in rows.values() if row.annotations]
        if self.group == "object":
            crowds = {(row.image_id, row.question): row.crowds for row in rows.values() if not row.annotations}
            for row in kept:
                row.crowds = crowds.get((row.image_id, row.question), [])
        return kept, len(rows) - len(kept)


def _by_id(data: Mapping[str, Any], key: str, path: str | Path) -> dict[int, Mapping[str, Any]]:
    items = data.get(key)
    if not isinstance(items, list):
        raise FileError(f"{path}: there is no list of {key}")
    found: dict[int, Mapping[str, Any]] = {}
    for position, item in enumerate(items):
        if not isinstance(item, dict) or not isinstance(item.get("id"), int):
            raise FileError(f"{path}: {key}, item {position} has no whole number as id")
        if item["id"] in found:
            raise FileError(f"{path}: {key}: id {item['id']} occurs twice")
        found[item["id"]] = item
    return found


def _checked_polygon(number: int, polygon: object) -> list[float]:
    """The polygon's numbers; pycocotools itself checks nothing."""
    if not isinstance(polygon, list) or len(polygon) % 2:
        raise FileError(f"polygon {number} is not a list of x, y, x, y, …")
    if len(polygon) < 6:
        raise FileError(f"polygon {number} needs 3 points, got {len(polygon) // 2}")
    for value in polygon:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise FileError(f"polygon {number} holds something that is no finite number")
        if abs(value) > MAX_COORDINATE:
            raise FileError(f"polygon {number}: a coordinate is beyond ±100,000")
    return [float(value) for value in polygon]
