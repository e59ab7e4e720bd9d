"""Shows predictions in TensorBoard: image, boxes, points, masks, question and reasoning."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cache
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pixelthink.types import Prediction, Target

Color = tuple[int, int, int]

TRUE_COLOR: Color = (40, 200, 80)
PREDICTED_COLOR: Color = (235, 60, 60)
HEADER, LINE = 22, 18
"""Heights in pixels of the headings and of a line of text."""


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
    """One prediction as a picture: truth on the left, answer on the right, texts below.

    Mask, box and points are green where they are true and red where they are answered; the true box is on the right
    too, so that a miss shows its distance.

    Args:
        prediction: What to show; the truth is left out where it is unknown.
        side: Longer side of each image in pixels.

    Returns:
        uint8 RGB (height, width, 3).
    """
    sample = prediction.prompt.sample
    scale = side / max(sample.image.size)
    size = (round(sample.image.width * scale), round(sample.image.height * scale))
    left, right = (sample.image.resize(size, Image.Resampling.NEAREST) for _ in range(2))
    left = _draw_targets(_draw_mask(left, sample.mask, TRUE_COLOR), sample.targets, TRUE_COLOR, scale)
    right = _draw_boxes(_draw_mask(right, prediction.mask, PREDICTED_COLOR), sample.targets, TRUE_COLOR, scale)
    right = _draw_targets(right, prediction.objects, PREDICTED_COLOR, scale)
    text = _caption(prediction, columns=max(20, 2 * size[0] // 8))
    panel = Image.new("RGB", (2 * size[0] + 4, size[1] + HEADER + LINE * len(text) + 8), "white")
    panel.paste(left, (0, HEADER))
    panel.paste(right, (size[0] + 4, HEADER))
    draw = ImageDraw.Draw(panel)
    draw.text((4, 3), "truth", fill=_darker(TRUE_COLOR), font=_font())
    draw.text((size[0] + 8, 3), _headline(prediction), fill=_darker(PREDICTED_COLOR), font=_font())
    for number, line in enumerate(text):
        draw.text((4, HEADER + size[1] + 4 + LINE * number), line, fill="black", font=_font())
    return np.asarray(panel)


@cache
def _font() -> Any:
    return ImageFont.load_default(14)


def _headline(prediction: Prediction) -> str:
    """ "answer" with its IoU, or with the reason why there is no mask."""
    if prediction.failure is not None:
        return f"no answer: {prediction.failure}"
    truth = prediction.prompt.sample.mask
    if truth is None:
        return "answer"
    union = (truth | prediction.mask).sum()
    return f"answer, IoU {(truth & prediction.mask).sum() / union if union else 1.0:.2f}"


def _draw_mask(picture: Image.Image, mask: np.ndarray | None, color: Color) -> Image.Image:
    """Tints a mask and outlines it, white outside and coloured inside, so that it shows on any background."""
    if mask is None:
        return picture
    pixels = np.array(picture, dtype=np.float32)
    inside = np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST), dtype=bool)
    pixels[inside] = 0.55 * pixels[inside] + 0.45 * np.array(color, dtype=np.float32)
    pixels[_grown(inside) & ~inside] = 255
    pixels[_grown(~inside) & inside] = color
    return Image.fromarray(pixels.astype(np.uint8))


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask grown by two pixels, bool (H, W)."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(5))
    return np.asarray(picture) > 0


def _draw_boxes(picture: Image.Image, targets: Sequence[Target], color: Color, scale: float) -> Image.Image:
    """Draws boxes in original pixels on a picture that is `scale` times as large."""
    draw = ImageDraw.Draw(picture)
    for target in targets:
        x1, y1, x2, y2 = (value * scale for value in target.box_xyxy)
        draw.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=color, width=2)
    return picture


def _draw_targets(picture: Image.Image, targets: Sequence[Target], color: Color, scale: float) -> Image.Image:
    """Draws boxes and points."""
    draw = ImageDraw.Draw(_draw_boxes(picture, targets, color, scale))
    for x, y in (point for target in targets for point in target.points_xy):
        draw.ellipse((x * scale - 5, y * scale - 5, x * scale + 5, y * scale + 5), fill=color, outline="white", width=2)
    return picture


def _darker(color: Color) -> Color:
    """A colour for text on white."""
    red, green, blue = (value * 2 // 3 for value in color)
    return red, green, blue


def _caption(prediction: Prediction, columns: int) -> list[str]:
    sample, completion = prediction.prompt.sample, prediction.completion
    difficulty = "unrated" if sample.difficulty is None else f"difficulty {sample.difficulty:.1f}"
    cut = ", cut off" if completion.finish_reason == "length" else ""
    lines = [f"Q ({difficulty}): {sample.question}"]
    lines.append(f"think ({completion.reasoning_tokens} tokens{cut}): {prediction.answer.reasoning or '(none)'}")
    if not prediction.answer.reasoning:
        lines.append(f"response: {completion.text}")
    lines = [line[: 8 * columns] for line in lines]
    return [part for line in lines for part in textwrap.wrap(line, columns, max_lines=6, placeholder=" …")]
