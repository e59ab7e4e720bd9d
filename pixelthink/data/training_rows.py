"""What the group's training tables share: `id, problem, solution, image`, with answers in 840-pixel coordinates."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from pixelthink.data.base import SampleSource
from pixelthink.data.difficulty import difficulties_for
from pixelthink.data.files import duplicates
from pixelthink.data.tables import Table, cell_error, open_table, read_image
from pixelthink.geometry import CoordinateFrame, clip_target
from pixelthink.types import Sample, Target

BORDER = 1.0
"""How far a target may lie beyond the image's last pixel: published boxes end at 840 where pixels end at 839."""


class TrainingRows(SampleSource):
    """Rows of `id, problem, solution, image`; masks are not published, so evaluation on them is not possible.

    Only of a row without any target is the mask known: it is empty.

    Args:
        path: Parquet file, folder of them, `save_to_disk` folder, or hub id.
        split: Split to read.
        difficulty_file: JSON list of `{"image_id": id, "difficulty_score_model": 1…10}`; without it samples have no
            difficulty, with it each needs one.
        solution_size: Width and height of the image in whose pixels solutions are written.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        difficulty_file: str | None = None,
        solution_size: tuple[int, int] = (840, 840),
    ) -> None:
        self.path = path
        self.split = split
        self.difficulty_file = difficulty_file
        self.solution_size = solution_size
        self._table: Table | None = None
        self._ids: list[str] = []
        self._duplicates: dict[int, int] = {}
        self._difficulties: dict[str, float] | None = None

    @abstractmethod
    def read_solution(self, text: str) -> tuple[Target, ...]:
        """The targets of a solution, in its own pixels; ValueError where it is none."""

    def setup(self) -> None:
        """Opens the table and reads ids and difficulties.

        Raises:
            ValueError: no such table, a column or difficulties missing; one line that names the file.
        """
        if self._table is not None:
            return
        table = open_table(self.path, self.split)
        table.require(("id", "problem", "solution", "image"))
        self._ids = table.texts("id")
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

    def _sample(self, row: dict[str, object], index: int) -> Sample:
        name = self._ids[index]
        if index in self._duplicates:
            raise ValueError(f"id {name!r} occurs already in row {self._duplicates[index]}")
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
            difficulty=None if self._difficulties is None else self._difficulties[name],
            meta={"image_id": name},
        )


def _to_original(target: Target, frame: CoordinateFrame) -> Target:
    """The target in the image's own pixels; what overhangs by the border's one pixel is moved in."""
    width, height = frame.model_size
    for x, y in (target.box_xyxy[:2], target.box_xyxy[2:], *target.points_xy):
        if not (-BORDER <= x <= width - 1 + BORDER and -BORDER <= y <= height - 1 + BORDER):
            raise ValueError(f"solution: ({x:g}, {y:g}) is outside the {width} × {height} pixels it is written in")
    return clip_target(frame.target_to_original(target), *frame.original_size)
