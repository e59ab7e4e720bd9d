"""Shows predictions in TensorBoard: image, boxes, points, masks, question and reasoning."""

from __future__ import annotations

import textwrap
from functools import cache
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont

from pixelthink.callbacks.drawing import PREDICTED_COLOR, TRUE_COLOR, Color, draw_boxes, draw_mask, draw_targets
from pixelthink.errors import UserError
from pixelthink.evaluation.interface import SegmentationModule
from pixelthink.metrics.functional import ProtocolName, get_protocol
from pixelthink.metrics.measured import measure
from pixelthink.types import Prediction

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
            raise UserError("SampleLogger: samples must be at least 1 and side at least 56 pixels")
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
            if isinstance(logger, TensorBoardLogger) and isinstance(pl_module, SegmentationModule):
                for index, prediction in enumerate(shown):
                    panel = draw_panel(prediction, self.side, pl_module.evaluator.config.protocol)
                    logger.experiment.add_image(f"samples/{index}", panel, trainer.global_step, dataformats="HWC")

    on_test_epoch_end = on_validation_epoch_end


def draw_panel(prediction: Prediction, side: int = 336, protocol: ProtocolName = "segzero") -> np.ndarray:
    """One prediction as a picture: truth on the left, answer on the right, texts below.

    Mask, box and points are green where they are true and red where they are answered; the true box is on the right
    too, so that a miss shows its distance.

    Args:
        prediction: What to show; the truth is left out where it is unknown.
        side: Longer side of each image in pixels.
        protocol: Rules for ignored pixels and empty masks.

    Returns:
        uint8 RGB (height, width, 3).
    """
    sample = prediction.prompt.sample
    scale = side / max(sample.image.size)
    size = (round(sample.image.width * scale), round(sample.image.height * scale))
    left, right = (sample.image.resize(size, Image.Resampling.NEAREST) for _ in range(2))
    left = draw_targets(draw_mask(left, sample.mask, TRUE_COLOR), sample.targets, TRUE_COLOR, scale)
    right = draw_boxes(draw_mask(right, prediction.mask, PREDICTED_COLOR), sample.targets, TRUE_COLOR, scale)
    right = draw_targets(right, prediction.objects, PREDICTED_COLOR, scale)
    text = _caption(prediction, columns=max(20, 2 * size[0] // 8))
    panel = Image.new("RGB", (2 * size[0] + 4, size[1] + HEADER + LINE * len(text) + 8), "white")
    panel.paste(left, (0, HEADER))
    panel.paste(right, (size[0] + 4, HEADER))
    draw = ImageDraw.Draw(panel)
    draw.text((4, 3), "truth", fill=_darker(TRUE_COLOR), font=_font())
    draw.text((size[0] + 8, 3), _headline(prediction, protocol), fill=_darker(PREDICTED_COLOR), font=_font())
    for number, line in enumerate(text):
        draw.text((4, HEADER + size[1] + 4 + LINE * number), line, fill="black", font=_font())
    return np.asarray(panel)


@cache
def _font() -> Any:
    return ImageFont.load_default(14)


def _headline(prediction: Prediction, protocol: ProtocolName) -> str:
    """ "answer" with its IoU under the protocol, or with the reason why there is no mask."""
    if prediction.failure is not None:
        return f"no answer: {prediction.failure}"
    if prediction.prompt.sample.mask is None:
        return "answer"
    return f"answer, IoU {measure(prediction, get_protocol(protocol)).iou:.2f} ({protocol})"


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
