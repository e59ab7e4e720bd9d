"""The training rows of VisionReasoner, several objects a row."""

from __future__ import annotations

from pixelthink.data.solution import parse_objects_solution
from pixelthink.data.training_rows import TrainingRows
from pixelthink.geometry import Target


class VisionReasonerRows(TrainingRows):
    """Rows `id, problem, solution, image` whose solution lists objects.

    `solution` is `[{"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}, …]` in 840-pixel coordinates, whatever the size
    of the image; `[]` says that there is no target.

    Args:
        path: Parquet file, folder of them, `save_to_disk` folder, or hub id.
        split: Split to read.
        difficulty_file: JSON list of `{"image_id": id, "difficulty_score_model": 1…10}`; without it samples have no
            difficulty, with it each needs one.
        solution_size: Width and height of the image in whose pixels solutions are written.
    """

    def read_solution(self, text: str) -> tuple[Target, ...]:
        return parse_objects_solution(text)
