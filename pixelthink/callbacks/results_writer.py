"""The folder to which `validate`, `test` and `predict` write their results."""

from __future__ import annotations

from lightning.pytorch.callbacks import Callback

from pixelthink.evaluation.result_folder import ResultFolder


class ResultsWriter(Callback):
    """Has `run.json`, `samples.jsonl`, `metrics.json` and thumbnails written; `docs/evaluation.md` says what they hold.

    While the run is under way, each batch's rows are appended to `samples.part-RANK.jsonl`. Start a run that was killed
    with the same command: what was answered is not answered again, and the results are those of a run that was not
    interrupted. It does nothing in `fit`.

    Args:
        path: Folder to write to; made where it is missing. Earlier results there stay until the new ones are whole.
        thumbnail_side: Longer side in pixels of the small copies of the images; 0 saves none.
        report: Write the page `report.html` too, see `docs/report.md`.
    """

    def __init__(self, path: str, thumbnail_side: int = 640, report: bool = True) -> None:
        self.folder = ResultFolder(path, thumbnail_side, report)
