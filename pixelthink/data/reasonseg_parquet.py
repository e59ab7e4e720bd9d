"""ReasonSeg as Seg-Zero publishes it for evaluation: Parquet rows with the mask as lists of booleans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pixelthink.data.table_source import TableSource
from pixelthink.data.tables import Table, read_image
from pixelthink.geometry import target_from_mask
from pixelthink.types import Sample


class ReasonSegParquet(TableSource):
    """Rows `image, text, mask, image_id, ann_id, img_height, img_width`, in original pixels.

    A row's id is `image_id#ann_id`. The texts of one `image_id` and `ann_id` ask for one object; where there are
    several, their ids are `image_id#ann_id#0`, `image_id#ann_id#1`, …. The format has no ignored region: whoever made
    it has already decided what becomes of one ("segzero" rows count it as target).

    Args:
        path: Parquet file, folder of them, `save_to_disk` folder, or hub id, e.g. "Ricky06662/ReasonSeg_test".
        split: Split to read.
        difficulty_file: JSON list of `{"image_id": …, "difficulty_score_model": 1…10}`; without it samples have no
            difficulty, with it each needs one.
    """

    columns = ("image", "text", "mask", "image_id", "ann_id")

    def __init__(self, path: str, split: str = "test", difficulty_file: str | None = None) -> None:
        super().__init__(path, split, difficulty_file)

    def read_ids(self, table: Table) -> list[str]:
        pairs = zip(table.texts("image_id"), table.texts("ann_id"), strict=True)
        return _numbered([f"{image}#{annotation}" for image, annotation in pairs], table.texts("text"))

    def read_sample(self, row: dict[str, Any], name: str, difficulty: float | None) -> Sample:
        mask = row["mask"]
        if not isinstance(mask, np.ndarray):
            raise ValueError("mask is not a list of equally long lists of booleans")
        image = read_image(row["image"], f"id {name!r}", mask.shape[::-1])
        sizes = {"mask": mask.shape, "image": (image.height, image.width)}
        if "img_height" in row and "img_width" in row:
            sizes["img_height, img_width"] = (row["img_height"], row["img_width"])
        if len(set(sizes.values())) > 1:
            raise ValueError("sizes differ: " + "; ".join(f"{key} {h} × {w}" for key, (h, w) in sizes.items()))
        if not isinstance(row["text"], str):
            raise ValueError("text is no text")
        return Sample(
            id=name,
            image=image,
            question=row["text"],
            mask=mask,
            targets=(target_from_mask(mask),) if mask.any() else (),
            difficulty=difficulty,
            meta={"image_id": str(row["image_id"])},
            object_id=f"{row['image_id']}#{row['ann_id']}",
        )


def _numbered(objects: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Ids of the rows: the object's, with the number of the text behind it where an object has several texts.

    The same text of the same object has the same id again, so that it is found to be there twice.
    """
    numbers: dict[str, dict[str, int]] = {}
    for name, text in zip(objects, texts, strict=True):
        of_object = numbers.setdefault(name, {})
        of_object.setdefault(text, len(of_object))
    return [
        name if len(numbers[name]) == 1 else f"{name}#{numbers[name][text]}"
        for name, text in zip(objects, texts, strict=True)
    ]
