"""The training tables of Seg-Zero, PixelThink and VisionReasoner: `id, problem, solution, image`."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from pixelthink.data.difficulty import DifficultyFaults
from pixelthink.data.images import ImageOpener
from pixelthink.data.solution import parse_objects_solution, parse_solution
from pixelthink.data.sources.table import TableSource, read_image, read_texts
from pixelthink.errors import FileError
from pixelthink.geometry import CoordinateFrame, Target, clip_target
from pixelthink.types import Sample

if TYPE_CHECKING:
    import datasets

BORDER = 1.0
"""How far a target may lie beyond the image's last pixel: published boxes end at 840 where pixels end at 839."""


class TrainingRows(TableSource):
    """Rows of `id, problem, solution, image`; masks are not published, so evaluation on them is not possible.

    Only of a row without any target is the mask known: it is empty.

    Args:
        path: Parquet file, folder of them, `save_to_disk` folder, or `hf://OWNER/NAME` on the hub, e.g.
            "hf://Ricky06662/refCOCOg_9k_840".
        split: Split to read.
        difficulty_file: JSON list of `{"image_id": id, "difficulty_score_model": 1…10}`; without it samples have no
            difficulty, with it each needs one.
        solution_size: Width and height of the image in whose pixels solutions are written.
        difficulty: What to do with samples for which the file has no usable rating.
    """

    columns = ("id", "problem", "solution", "image")

    def __init__(
        self,
        path: str,
        split: str = "train",
        difficulty_file: str | None = None,
        solution_size: tuple[int, int] = (840, 840),
        difficulty: DifficultyFaults = DifficultyFaults(),
    ) -> None:
        super().__init__(path, split, difficulty_file, difficulty)
        self.solution_size = solution_size

    @abstractmethod
    def read_solution(self, text: str) -> tuple[Target, ...]:
        """The targets of a solution, in its own pixels; ValueError where it is none."""

    def read_ids(self, table: datasets.Dataset) -> list[str]:
        return read_texts(table, "id")

    def read_sample(self, row: dict[str, Any], name: str, open_image: ImageOpener) -> Sample:
        for column in ("problem", "solution"):
            if not isinstance(row[column], str):
                raise FileError(f"{column} is no text")
        image = read_image(row["image"], f"id {name!r}", open_image)
        frame = CoordinateFrame(image.size, self.solution_size)
        targets = self.read_solution(row["solution"])
        return Sample(
            id=name,
            image=image,
            question=row["problem"],
            mask=None if targets else np.zeros((image.height, image.width), dtype=bool),
            targets=tuple(_to_original(target, frame) for target in targets),
            meta={"image_id": name},
        )


class RefCOCOg840(TrainingRows):
    """Training rows of Seg-Zero and PixelThink (`refCOCOg_9k_840`), one object a row.

    `solution` is `<box>(x1,y1),(x2,y2)</box><points>(x,y),(x,y)</points>` in 840-pixel coordinates, at any size of the
    image.
    """

    def read_solution(self, text: str) -> tuple[Target, ...]:
        return (parse_solution(text),)


class VisionReasonerRows(TrainingRows):
    """Training rows of VisionReasoner, several objects a row.

    `solution` is `[{"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}, …]` in 840-pixel coordinates, at any size of the
    image; `[]` says that there is no target.
    """

    def read_solution(self, text: str) -> tuple[Target, ...]:
        return parse_objects_solution(text)


def _to_original(target: Target, frame: CoordinateFrame) -> Target:
    """The target in the image's own pixels, as it is written: 840 stays 840; what lies up to `BORDER` before 0 is 0."""
    width, height = frame.model_size
    for x, y in (target.box_xyxy[:2], target.box_xyxy[2:], *target.points_xy):
        if not (-BORDER <= x <= width - 1 + BORDER and -BORDER <= y <= height - 1 + BORDER):
            raise FileError(f"solution: ({x:g}, {y:g}) is outside the {width} × {height} pixels it is written in")
    return clip_target(frame.target_to_original(target), frame.original_size[0] + 1, frame.original_size[1] + 1)
