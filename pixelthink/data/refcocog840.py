"""The training rows of Seg-Zero and PixelThink (`refCOCOg_9k_840`), one object a row."""

from __future__ import annotations

from pixelthink.data.solution import parse_solution
from pixelthink.data.training_rows import TrainingRows
from pixelthink.geometry import Target


class RefCOCOg840(TrainingRows):
    """Training rows `id, problem, solution, image` of the released recipe.

    `solution` is `<box>(x1,y1),(x2,y2)</box><points>(x,y),(x,y)</points>` in 840-pixel coordinates, whatever the size
    of the image.

    Args:
        path: Parquet file, folder of them, `save_to_disk` folder, or hub id, e.g. "Ricky06662/refCOCOg_9k_840".
        split: Split to read.
        difficulty_file: JSON list of `{"image_id": id, "difficulty_score_model": 1…10}`; without it samples have no
            difficulty, with it each needs one.
        solution_size: Width and height of the image in whose pixels solutions are written.
    """

    def read_solution(self, text: str) -> tuple[Target, ...]:
        return (parse_solution(text),)
