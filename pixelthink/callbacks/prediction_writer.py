"""Writes predictions as files that people open: an overlay, a mask, and a line of JSON each."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import IO, Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from PIL import Image

from pixelthink.callbacks.drawing import PREDICTED_COLOR, draw_mask, draw_targets
from pixelthink.data.images import encode_png
from pixelthink.errors import FileError, UserError
from pixelthink.evaluation.results import target_row
from pixelthink.files.atomic import write_atomically
from pixelthink.files.jsonl import read_rows, write_rows_atomically
from pixelthink.geometry import encode_rle
from pixelthink.types import Prediction

ROWS = "predictions.jsonl"
MAX_NAME_BYTES = 100


class PredictionWriter(Callback):
    """Writes `NAME.overlay.png`, `NAME.mask.png` and a row of `predictions.jsonl` for each prediction.

    NAME is made of the sample's id. Masks are 0 and 255 at the image's own resolution, empty where the answer failed;
    overlays show mask, box and points on the image. A row holds `id, image, question, text, reasoning, answer` (the
    objects in pixels of the image), `mask` (COCO RLE), `failure, failure_detail, flaws, finish_reason,
    reasoning_tokens, response_tokens, token_target` (what the prompt asked for), `timings` and the names of `files`.
    Of an image that has vanished since the run began, or that cannot be read, there is a row without mask and files.
    Everything is on disk as soon as its batch is answered, the rows in `predictions.part-PROCESS.jsonl` until the end.

    Args:
        path: Folder to write to; made where it is missing.
        numbered: Where there is something in the folder already, write to `PATH-2`, `PATH-3`, …; without it, stop.
            Nothing is ever written over.
        overlays: Write the overlays.
        masks: Write the masks.
    """

    def __init__(
        self, path: str = "runs/predict", numbered: bool = True, overlays: bool = True, masks: bool = True
    ) -> None:
        self.path = path
        self.numbered = numbered
        self.overlays = overlays
        self.masks = masks
        self._folder = Path(path)
        self._names: dict[str, str] = {}
        self._part: IO[str] | None = None
        self._found_images = False

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        ids = trainer.datamodule.sources["predict"].ids()  # type: ignore[attr-defined]
        self._names = file_names(ids)
        if trainer.is_global_zero:
            self._folder = claim_folder(Path(self.path), numbered=self.numbered)
        self._folder = trainer.strategy.broadcast(self._folder)
        self._part = self._part_file(trainer.global_rank).open("w", encoding="utf-8")

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *rest: Any) -> None:
        assert self._part is not None
        try:
            for prediction in outputs:
                self._part.write(json.dumps(self._written(prediction), ensure_ascii=False, allow_nan=False) + "\n")
            self._part.flush()
        except OSError as error:
            raise FileError(f"predictions cannot be written to {self._folder}: {error.strerror or error}") from error

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._part is None:
            return
        self._part.close()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            parts = [self._part_file(rank) for rank in range(trainer.world_size)]
            rows = {row["id"]: row for part in parts for _, row in read_rows(part)}
            ordered = [rows[name] for name in self._names if name in rows]
            write_rows_atomically(self._folder / ROWS, ordered)
            for part in parts:
                part.unlink()
            print(_summary(self._folder, ordered))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leaves what was answered; where not one image could be read, nothing."""
        if self._part is None or self._found_images:
            return
        self._part.close()
        self._part_file(trainer.global_rank).unlink(missing_ok=True)
        with suppress(OSError):  # another process has left something there
            self._folder.rmdir()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._part is not None:
            self._part.close()  # a second time does no harm; the first is missing where the run failed

    def _part_file(self, rank: int) -> Path:
        return self._folder / f"{Path(ROWS).stem}.part-{rank}.jsonl"

    def _written(self, prediction: Prediction) -> dict[str, Any]:
        """Writes a prediction's pictures; returns its row."""
        name = self._names[prediction.prompt.sample.id]
        files: dict[str, str] = {}
        there = prediction.prompt.sample.missing is None
        self._found_images |= there
        if self.overlays and there:
            files["overlay"] = f"{name}.overlay.png"
            write_atomically(self._folder / files["overlay"], encode_png(draw_overlay(prediction)))
        if self.masks and there:
            files["mask"] = f"{name}.mask.png"
            picture = Image.fromarray(prediction.mask.astype(np.uint8) * 255)
            write_atomically(self._folder / files["mask"], encode_png(picture))
        return prediction_row(prediction) | {"files": files}


def draw_overlay(prediction: Prediction) -> Image.Image:
    """The image at its own resolution with the predicted mask, boxes and points on it."""
    image = prediction.prompt.sample.image
    width = max(2, round(max(image.size) / 400))
    tinted = draw_mask(image, prediction.mask, PREDICTED_COLOR, width)
    return draw_targets(tinted, prediction.objects, PREDICTED_COLOR, 1.0, width)


def prediction_row(prediction: Prediction) -> dict[str, Any]:
    """A prediction as a JSON object; everything in pixels of the image."""
    sample, completion = prediction.prompt.sample, prediction.completion
    return {
        "id": sample.id,
        "image": sample.meta.get("file"),
        "question": sample.question,
        "text": completion.text,
        "reasoning": prediction.answer.reasoning,
        "answer": [target_row(target) for target in prediction.objects],
        "mask": None if sample.missing is not None else encode_rle(prediction.mask),
        "failure": prediction.failure,
        "failure_detail": prediction.failure_detail,
        "flaws": list(prediction.flaws),
        "finish_reason": completion.finish_reason,
        "reasoning_tokens": completion.reasoning_tokens,
        "response_tokens": len(completion.token_ids),
        "token_target": None if (asked := prediction.prompt.token_target) is None else asdict(asked),
        "timings": asdict(prediction.timings),
    }


def file_names(ids: Iterable[str]) -> dict[str, str]:
    """A file name for each id, in order; no two are equal, not even on a disk that ignores case.

    Letters and digits of any script, `.`, `-` and `_` are kept, whatever else becomes `_`; long names are cut.

    Raises:
        UserError: two ids are equal.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for sample_id in ids:
        if sample_id in names:
            raise UserError(f"two samples have the id {sample_id!r}, so their files could not be told apart")
        plain = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", sample_id))
        plain = plain.encode("utf-8")[:MAX_NAME_BYTES].decode("utf-8", "ignore").strip("._-") or "sample"
        name = next(name for name in _numbered(plain) if name.casefold() not in taken)
        taken.add(name.casefold())
        names[sample_id] = name
    return names


def _numbered(name: str) -> Iterator[str]:
    """NAME, NAME-2, NAME-3, …"""
    yield name
    yield from (f"{name}-{number}" for number in count(2))


def claim_folder(path: Path, *, numbered: bool) -> Path:
    """Makes an empty folder: `path`, or where there is something, `path-2`, `path-3`, …

    Raises:
        FileError: the folder cannot be made; or `path` is taken and `numbered` is off. One line.
    """
    for name in _numbered(path.name):
        folder = path.with_name(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not any(folder.iterdir()):
                return folder
        except FileExistsError:
            pass  # a file of that name
        except OSError as error:
            raise FileError(f"predictions cannot be written to {folder}: {error.strerror}") from None
        if not numbered:
            raise FileError(f"PredictionWriter.path: there is something at {folder} already; nothing was written")
    raise AssertionError("numbers do not end")


def _summary(folder: Path, rows: list[dict[str, Any]]) -> str:
    """What was written, on one line."""
    causes = Counter(row["failure"] for row in rows if row["failure"] is not None)
    failed = ", ".join(f"{cause} {n}" for cause, n in causes.items())
    return f"{len(rows)} prediction(s) in {folder}" + (f"; without a usable answer: {failed}" if failed else "")
