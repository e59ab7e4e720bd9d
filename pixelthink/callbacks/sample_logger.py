"""Shows predictions in TensorBoard: image, boxes, points, masks, question and reasoning."""

from __future__ import annotations

import textwrap
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw

from pixelthink.types import Prediction, Target

TRUE_COLOR = (40, 200, 80)
PREDICTED_COLOR = (235, 60, 60)


class SampleLogger(Callback):
    """Draws the first predictions of each evaluation as one panel a sample.

    Args:
        samples: How many samples to show.
        side: Length in pixels to which the longer side of each image is scaled.
    """

    def __init__(self, samples: int = 8, side: int = 336) -> None:
        if samples < 1 or side < 56:
            raise ValueError("SampleLogger: samples must be at least 1 and side at least 56 pixels")
        self.samples = samples
        self.side = side
        self._shown: list[Prediction] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *rest: Any, **named: Any
    ) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            self._shown += list(outputs or [])[: self.samples - len(self._shown)]

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        shown, self._shown = self._shown, []
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                for index, prediction in enumerate(shown):
                    logger.experiment.add_image(
                        f"samples/{index}", draw_panel(prediction, self.side), trainer.global_step, dataformats="HWC"
                    )

    on_test_epoch_end = on_validation_epoch_end


def draw_panel(prediction: Prediction, side: int = 336) -> np.ndarray:
    """One prediction as a picture: truth (green) on the left, answer (red) on the right, texts below.

    Args:
        prediction: What to show; the truth is left out where it is unknown.
        side: Longer side of each image in pixels.

    Returns:
        uint8 RGB (height, width, 3).
    """
    sample = prediction.prompt.sample
    scale = side / max(sample.image.size)
    size = (round(sample.image.width * scale), round(sample.image.height * scale))
    left = _overlay(sample.image, sample.mask, sample.targets, TRUE_COLOR, size, scale)
    right = _overlay(sample.image, prediction.mask, _answered(prediction), PREDICTED_COLOR, size, scale)
    text = _caption(prediction, columns=max(20, 2 * size[0] // 7))
    panel = Image.new("RGB", (2 * size[0] + 4, size[1] + 14 * len(text) + 8), "white")
    panel.paste(left, (0, 0))
    panel.paste(right, (size[0] + 4, 0))
    ImageDraw.Draw(panel).multiline_text((4, size[1] + 4), "\n".join(text), fill="black", spacing=3)
    return np.asarray(panel)


def _answered(prediction: Prediction) -> tuple[Target, ...]:
    """The answered object in original pixels, if any."""
    answer = prediction.answer
    if answer.failure is not None or answer.box_xyxy is None or answer.points_xy is None:
        return ()
    target = Target(answer.box_xyxy, (answer.points_xy[0], answer.points_xy[-1]))
    return (prediction.prompt.frame.target_to_original(target),)


def _overlay(
    image: Image.Image,
    mask: np.ndarray | None,
    targets: tuple[Target, ...],
    color: tuple[int, int, int],
    size: tuple[int, int],
    scale: float,
) -> Image.Image:
    pixels = np.asarray(image.resize(size, Image.Resampling.NEAREST)).astype(np.float32)
    if mask is not None:
        inside = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST), dtype=bool)
        pixels[inside] = 0.5 * pixels[inside] + 0.5 * np.array(color, dtype=np.float32)
    picture = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for target in targets:
        x1, y1, x2, y2 = (value * scale for value in target.box_xyxy)
        draw.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=color, width=2)
        for x, y in target.points_xy:
            draw.ellipse((x * scale - 4, y * scale - 4, x * scale + 4, y * scale + 4), fill=color, outline="white")
    return picture


def _caption(prediction: Prediction, columns: int) -> list[str]:
    sample, completion = prediction.prompt.sample, prediction.completion
    difficulty = "unrated" if sample.difficulty is None else f"difficulty {sample.difficulty:.1f}"
    lines = [f"Q ({difficulty}): {sample.question}"]
    lines.append(f"think ({completion.reasoning_tokens} tokens): {prediction.answer.reasoning or '(none)'}")
    if prediction.failure is not None:
        lines.append(f"no mask: {prediction.failure}")
    return [part for line in lines for part in textwrap.wrap(line, columns, max_lines=6)]
