"""ReasonSeg as Seg-Zero publishes it for evaluation: Parquet rows with the mask as lists of booleans."""

from __future__ import annotations

from typing import Any

import numpy as np

from pixelthink.data.base import SampleSource
from pixelthink.data.difficulty import difficulties_for
from pixelthink.data.files import duplicates
from pixelthink.data.tables import Table, cell_error, open_table, read_image
from pixelthink.geometry import target_from_mask
from pixelthink.types import Sample

COLUMNS = ("image", "text", "mask", "image_id", "ann_id")


class ReasonSegParquet(SampleSource):
    """Rows `image, text, mask, image_id, ann_id, img_height, img_width`, in original pixels.

    A row's id is `image_id#ann_id`. The format has no ignored region: whoever made it has already decided what becomes
    of one ("segzero" rows count it as target).

    Args:
        path: Parquet file, folder of them, `save_to_disk` folder, or hub id, e.g. "Ricky06662/ReasonSeg_test".
        split: Split to read.
        difficulty_file: JSON list of `{"image_id": …, "difficulty_score_model": 1…10}`; without it samples have no
            difficulty, with it each needs one.
    """

    def __init__(self, path: str, split: str = "test", difficulty_file: str | None = None) -> None:
        self.path = path
        self.split = split
        self.difficulty_file = difficulty_file
        self._table: Table | None = None
        self._ids: list[str] = []
        self._duplicates: dict[int, int] = {}
        self._difficulties: dict[str, float] | None = None

    def setup(self) -> None:
        """Opens the table and reads ids and difficulties.

        Raises:
            ValueError: no such table, a column or difficulties missing; one line that names the file.
        """
        if self._table is not None:
            return
        table = open_table(self.path, self.split)
        table.require(COLUMNS)
        pairs = zip(table.texts("image_id"), table.texts("ann_id"), strict=True)
        self._ids = [f"{image}#{annotation}" for image, annotation in pairs]
        self._duplicates = duplicates(self._ids)
        if self.difficulty_file is not None:
            self._difficulties = difficulties_for(self.difficulty_file, self._ids)
        self._table = table

    def __len__(self) -> int:
        return len(self._opened())

    def __getitem__(self, index: int) -> Sample:
        table = self._opened()
        if not 0 <= index < len(table):
            raise IndexError(f"{table.name} has {len(table)} rows, there is no number {index}")
        try:
            return self._sample(table.row(index), index)
        except ValueError as error:
            raise cell_error(table, index, error) from None

    def ids(self) -> list[str]:
        self._opened()
        return self._ids

    def _opened(self) -> Table:
        if self._table is None:
            raise RuntimeError("call setup() before reading samples")
        return self._table

    def _sample(self, row: dict[str, Any], index: int) -> Sample:
        name = self._ids[index]
        if index in self._duplicates:
            raise ValueError(f"id {name!r} occurs already in row {self._duplicates[index]}")
        image = read_image(row["image"], f"id {name!r}")
        mask = row["mask"]
        if not isinstance(mask, np.ndarray):
            raise ValueError("mask is not a list of equally long lists of booleans")
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
            difficulty=None if self._difficulties is None else self._difficulties[name],
            meta={"image_id": str(row["image_id"])},
        )
