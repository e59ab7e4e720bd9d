"""Draws masks, boxes and points on pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from pixelthink.geometry import Target

Color = tuple[int, int, int]

TRUE_COLOR: Color = (40, 200, 80)
PREDICTED_COLOR: Color = (235, 60, 60)

TINT = 0.45
"""Share of a mask's colour in the pixels that it covers."""


def draw_mask(picture: Image.Image, mask: np.ndarray | None, color: Color, width: int = 2) -> Image.Image:
    """Tints a mask and outlines it, white outside and coloured inside, so that it shows on any background.

    Args:
        picture: Where to draw; RGB. It is not changed.
        mask: bool (H, W), of any size with the picture's aspect; None draws nothing.
        color: Colour of tint and outline.
        width: Width of each outline in pixels.

    Returns:
        The new picture.
    """
    if mask is None:
        return picture
    pixels = np.array(picture)
    inside = np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST), dtype=bool)
    pixels[inside] = (1 - TINT) * pixels[inside] + TINT * np.array(color)
    pixels[_grown(inside, width) & ~inside] = 255
    pixels[_grown(~inside, width) & inside] = color
    return Image.fromarray(pixels)


def draw_boxes(
    picture: Image.Image, targets: Sequence[Target], color: Color, scale: float, width: int = 2
) -> Image.Image:
    """Draws boxes in original pixels on a picture that is `scale` times as large; returns the picture."""
    draw = ImageDraw.Draw(picture)
    for target in targets:
        x1, y1, x2, y2 = (value * scale for value in target.box_xyxy)
        draw.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=color, width=width)
    return picture


def draw_targets(
    picture: Image.Image, targets: Sequence[Target], color: Color, scale: float, width: int = 2
) -> Image.Image:
    """Draws boxes and points, the points as discs of 2.5 widths' radius; returns the picture."""
    draw = ImageDraw.Draw(draw_boxes(picture, targets, color, scale, width))
    radius = 2.5 * width
    for x, y in (point for target in targets for point in target.points_xy):
        around = (x * scale - radius, y * scale - radius, x * scale + radius, y * scale + radius)
        draw.ellipse(around, fill=color, outline="white", width=width)
    return picture


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """A mask grown by some pixels, bool (H, W)."""
    import cv2

    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), dtype=np.uint8)) > 0
