"""COCO instances: polygons or run lengths, asked for by category or by a caption of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from pixelthink.data.base import SampleSource
from pixelthink.data.files import read_json
from pixelthink.data.images import open_rgb
from pixelthink.geometry import Target, decode_rle, target_from_mask
from pixelthink.types import Sample

MAX_COORDINATE = 1e5


@dataclass(frozen=True)
class Instances:
    """An instances file.

    Attributes:
        path: Where it came from.
        images: Image object by id.
        annotations: Annotation object by id.
        categories: Category name by id.
        licences: Licence name by id.
    """

    path: str
    images: Mapping[int, Mapping[str, Any]]
    annotations: Mapping[int, Mapping[str, Any]]
    categories: Mapping[int, str]
    licences: Mapping[int, str]

    def image(self, image_id: int) -> Mapping[str, Any]:
        """The image object.

        Raises:
            ValueError: there is none.
        """
        if image_id not in self.images:
            raise ValueError(f"{self.path}: there is no image {image_id}")
        return self.images[image_id]

    def licence(self, image_id: int) -> str | None:
        """Name of the image's licence, where the file gives one."""
        return self.licences.get(self.images[image_id].get("license", -1))

    def mask(self, annotation_id: int, height: int, width: int) -> np.ndarray:
        """Mask of one annotation, bool (height, width).

        Raises:
            ValueError: there is no such annotation, or it draws no pixel of an image of this size; names it.
        """
        if annotation_id not in self.annotations:
            raise ValueError(f"{self.path}: there is no annotation {annotation_id}")
        try:
            mask = coco_mask(self.annotations[annotation_id].get("segmentation"), height, width)
            if not mask.any():
                raise ValueError("its segmentation covers no pixel of the image")
        except ValueError as error:
            raise ValueError(f"{self.path}: annotation {annotation_id}: {error}") from None
        return mask


def read_instances(path: str | Path) -> Instances:
    """Reads an instances file.

    Raises:
        ValueError: not such a file; one line that names it.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: an instances file is an object with images, annotations and categories")
    names = _by_id(data, "categories", path)
    licences = _by_id(data, "licenses", path) if data.get("licenses") else {}
    return Instances(
        path=str(path),
        images=_by_id(data, "images", path),
        annotations=_by_id(data, "annotations", path),
        categories={key: str(value.get("name", "")) for key, value in names.items()},
        licences={key: str(value.get("name", "")) for key, value in licences.items()},
    )


def coco_mask(segmentation: object, height: int, width: int) -> np.ndarray:
    """Mask of a COCO segmentation, rasterised as pycocotools does.

    Args:
        segmentation: A list of polygons `[x1, y1, x2, y2, …]`, of which a pixel needs to be in one, or RLE whose
            counts are a list, str or bytes. Polygons may reach beyond the image.
        height: Height of the image.
        width: Width of the image.

    Returns:
        bool (height, width).

    Raises:
        ValueError: neither, a polygon of fewer than 3 points, or RLE of another size.
    """
    from pycocotools import mask as coco

    if isinstance(segmentation, Mapping):
        mask = decode_rle(segmentation)
        if mask.shape != (height, width):
            raise ValueError(f"the mask is {mask.shape[0]} × {mask.shape[1]}, the image {height} × {width}")
        return mask
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("segmentation must be a list of polygons or RLE")
    polygons = [_checked_polygon(number, polygon) for number, polygon in enumerate(segmentation)]
    rles = coco.frPyObjects(polygons, height, width)
    return np.asarray(coco.decode(coco.merge(rles)), dtype=bool)


class COCO(SampleSource):
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
        self._rows: list[_Row] = []

    def setup(self) -> None:
        """Reads the instances file.

        Raises:
            ValueError: it cannot be read or asks for nothing.
        """
        if self._data is not None:
            return
        data = read_instances(self.instances)
        self._rows, crowds = _group(data, self.query, self.group, self.caption_field)
        if not self._rows:
            raise ValueError(f"{self.instances}: there is no annotation to ask for")
        self._data = data
        note = f"; {crowds} of nothing but crowd regions are not asked for" if crowds else ""
        rank_zero_info(f"{self.instances}: {len(self._rows)} samples, one per {self.group}, by {self.query}{note}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        if self._data is None:
            raise RuntimeError("call setup() before reading samples")
        data, row = self._data, self._rows[index]
        if not row.question.strip():
            raise ValueError(f"{data.path}: annotation {row.objects[0]} has no {self.query}")
        sample = instances_sample(data, self.images, row.id, row.image_id, row.question, row.objects)
        if not row.crowds:
            return sample
        ignore = np.zeros((sample.image.height, sample.image.width), dtype=bool)
        for crowd in row.crowds:
            ignore |= data.mask(crowd, *ignore.shape)
        assert sample.mask is not None
        return replace(sample, ignore=ignore & ~sample.mask)

    def ids(self) -> list[str]:
        return [row.id for row in self._rows]


def instances_sample(
    data: Instances, folder: str, name: str, image_id: int, question: str, objects: Sequence[int]
) -> Sample:
    """A sample that asks for annotations of an image; none of them means that there is no target.

    Raises:
        ValueError: the image or an annotation cannot be used, or the image has another size than the file says.
    """
    record = data.image(image_id)
    file = Path(folder) / str(record.get("file_name"))
    size = (record.get("width"), record.get("height"))
    whole = all(isinstance(side, int) for side in size)
    image = open_rgb(file, size=cast("tuple[int, int]", size) if whole else None)
    if None not in size and size != image.size:
        raise ValueError(f"{file}: the image is {image.height} × {image.width}, {data.path} says {size[1]} × {size[0]}")
    mask = np.zeros((image.height, image.width), dtype=bool)
    targets: list[Target] = []
    for annotation in objects:
        part = data.mask(annotation, *mask.shape)
        targets.append(target_from_mask(part))
        mask |= part
    meta = {"file": str(file), "image_id": str(image_id), "annotations": list(objects)}
    if licence := data.licence(image_id):
        meta["licence"] = licence
    return Sample(name, image, question, mask, None, tuple(targets), meta=meta)


@dataclass
class _Row:
    id: str
    image_id: int
    question: str
    objects: list[int]
    crowds: list[int]


def _group(data: Instances, query: str, group: str, caption_field: str) -> tuple[list[_Row], int]:
    """Samples in the file's order, and how many were left out because they hold nothing but crowd regions."""
    rows: dict[tuple[int, object], _Row] = {}
    for number, annotation in data.annotations.items():
        image_id, category = annotation.get("image_id"), annotation.get("category_id")
        if not isinstance(image_id, int) or not isinstance(category, int):
            raise ValueError(f"{data.path}: annotation {number} has no image_id or category_id")
        question = data.categories.get(category, "") if query == "category" else str(annotation.get(caption_field, ""))
        crowd = bool(annotation.get("iscrowd", 0))
        alone = group == "object" and not crowd
        key = (image_id, ("object", number) if alone else question)
        name = str(number) if alone else f"{image_id}#{category if query == 'category' else number}"
        row = rows.setdefault(key, _Row(name, image_id, question, [], []))
        (row.crowds if crowd else row.objects).append(number)
    kept = [row for row in rows.values() if row.objects]
    if group == "object":
        crowds = {(row.image_id, row.question): row.crowds for row in rows.values() if not row.objects}
        for row in kept:
            row.crowds = crowds.get((row.image_id, row.question), [])
    return kept, len(rows) - len(kept)


def _by_id(data: Mapping[str, Any], key: str, path: str | Path) -> dict[int, Mapping[str, Any]]:
    items = data.get(key)
    if not isinstance(items, list):
        raise ValueError(f"{path}: there is no list of {key}")
    found: dict[int, Mapping[str, Any]] = {}
    for position, item in enumerate(items):
        if not isinstance(item, dict) or not isinstance(item.get("id"), int):
            raise ValueError(f"{path}: {key}, item {position} has no whole number as id")
        if item["id"] in found:
            raise ValueError(f"{path}: {key}: id {item['id']} occurs twice")
        found[item["id"]] = item
    return found


def _checked_polygon(number: int, polygon: object) -> list[float]:
    """The polygon's numbers; pycocotools trusts whatever it is handed."""
    if not isinstance(polygon, list) or len(polygon) % 2:
        raise ValueError(f"polygon {number} is not a list of x, y, x, y, …")
    if len(polygon) < 6:
        raise ValueError(f"polygon {number} needs 3 points, got {len(polygon) // 2}")
    for value in polygon:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"polygon {number} holds something that is no finite number")
        if abs(value) > MAX_COORDINATE:
            raise ValueError(f"polygon {number}: a coordinate is beyond ±100,000")
    return [float(value) for value in polygon]
