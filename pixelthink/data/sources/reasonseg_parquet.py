"""ReasonSeg as Seg-Zero publishes it for evaluation: Parquet rows with the mask as lists of booleans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pixelthink.data.difficulty import DifficultyFaults
from pixelthink.data.images import ImageOpener
from pixelthink.data.sources.table import TableSource, read_image, read_texts
from pixelthink.errors import FileError
from pixelthink.geometry import target_from_mask
from pixelthink.types import Sample

if TYPE_CHECKING:
    import datasets


class ReasonSegParquet(TableSource):
    """Rows `image, text, mask, image_id, ann_id, img_height, img_width`, in original pixels.

    A row's id is `image_id#ann_id`. The texts of one `image_id` and `ann_id` ask for one object; where there are
    several, their ids are `image_id#ann_id#0`, `image_id#ann_id#1`, …. The format has no ignored region ("segzero" rows
    count it as target).
    """

    columns = ("image", "text", "mask", "image_id", "ann_id")

    def __init__(
        self,
        path: str,
        split: str = "test",
        difficulty_file: str | None = None,
        difficulty: DifficultyFaults = DifficultyFaults(),
    ) -> None:
        super().__init__(path, split, difficulty_file, difficulty)

    def read_ids(self, table: datasets.Dataset) -> list[str]:
        columns = (read_texts(table, name) for name in ("image_id", "ann_id", "text"))
        rows = [(f"{image}#{annotation}", text) for image, annotation, text in zip(*columns, strict=True)]
        numbers: dict[str, dict[str, int]] = {}  # the same text again has the same id, so that it is found to be double
        for name, text in rows:
            of_object = numbers.setdefault(name, {})
            of_object.setdefault(text, len(of_object))
        return [name if len(numbers[name]) == 1 else f"{name}#{numbers[name][text]}" for name, text in rows]

    def read_sample(self, row: dict[str, Any], name: str, open_image: ImageOpener) -> Sample:
        mask = row["mask"]
        if not isinstance(mask, np.ndarray):
            raise FileError("mask is not a list of equally long lists of booleans")
        image = read_image(row["image"], f"id {name!r}", open_image, mask.shape[::-1])
        sizes = {"mask": mask.shape, "image": (image.height, image.width)}
        if "img_height" in row and "img_width" in row:
            sizes["img_height, img_width"] = (row["img_height"], row["img_width"])
        if len(set(sizes.values())) > 1:
            raise FileError("sizes differ: " + "; ".join(f"{key} {h} × {w}" for key, (h, w) in sizes.items()))
        if not isinstance(row["text"], str):
            raise FileError("text is no text")
        return Sample(
            id=name,
            image=image,
            question=row["text"],
            mask=mask,
            targets=(target_from_mask(mask),) if mask.any() else (),
            meta={"image_id": str(row["image_id"])},
            object_id=f"{row['image_id']}#{row['ann_id']}",
        )
