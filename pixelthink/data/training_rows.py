"""What the group's training tables share: `id, problem, solution, image`, with answers in 840-pixel coordinates."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from pixelthink.data.table_source import TableSource
from pixelthink.data.tables import Table, read_image
from pixelthink.geometry import CoordinateFrame, Target, clip_target
from pixelthink.types import Sample

BORDER = 1.0
"""How far a target may lie beyond the image's last pixel: published boxes end at 840 where pixels end at 839."""


class TrainingRows(TableSource):
    """Rows of `id, problem, solution, image`; masks are not published, so evaluation on them is not possible.

    Only of a row without any target is the mask known: it is empty.

    Args:
        path: Parquet file, folder of them, `save_to_disk` folder, or hub id.
        split: Split to read.
        difficulty_file: JSON list of `{"image_id": id, "difficulty_score_model": 1…10}`; without it samples have no
            difficulty, with it each needs one.
        solution_size: Width and height of the image in whose pixels solutions are written.
    """

    columns = ("id", "problem", "solution", "image")

    def __init__(
        self,
        path: str,
        split: str = "train",
        difficulty_file: str | None = None,
        solution_size: tuple[int, int] = (840, 840),
    ) -> None:
        super().__init__(path, split, difficulty_file)
        self.solution_size = solution_size

    @abstractmethod
    def read_solution(self, text: str) -> tuple[Target, ...]:
        """The targets of a solution, in its own pixels; ValueError where it is none."""

    def read_ids(self, table: Table) -> list[str]:
        return table.texts("id")

    def read_sample(self, row: dict[str, Any], name: str, difficulty: float | None) -> Sample:
        for column in ("problem", "solution"):
            if not isinstance(row[column], str):
                raise ValueError(f"{column} is no text")
        image = read_image(row["image"], f"id {name!r}")
        frame = CoordinateFrame(image.size, self.solution_size)
        targets = self.read_solution(str(row["solution"]))
        return Sample(
            id=name,
            image=image,
            question=str(row["problem"]),
            mask=None if targets else np.zeros((image.height, image.width), dtype=bool),
            targets=tuple(_to_original(target, frame) for target in targets),
            difficulty=difficulty,
            meta={"image_id": name},
        )


def _to_original(target: Target, frame: CoordinateFrame) -> Target:
    """The target in the image's own pixels; what overhangs by the border's one pixel is moved in."""
    width, height = frame.model_size
    for x, y in (target.box_xyxy[:2], target.box_xyxy[2:], *target.points_xy):
        if not (-BORDER <= x <= width - 1 + BORDER and -BORDER <= y <= height - 1 + BORDER):
            raise ValueError(f"solution: ({x:g}, {y:g}) is outside the {width} × {height} pixels it is written in")
    return clip_target(frame.target_to_original(target), *frame.original_size)
