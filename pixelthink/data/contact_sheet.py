"""A picture of many samples, for a person to look at before anything is trained on them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pixelthink.types import Sample

TILE = 300
TEXT_LINES = 4
LINE = 15
FONT_SIZE = 12
GREEN, GREY, RED, YELLOW = (0, 220, 80), (90, 90, 90), (230, 30, 30), (255, 225, 0)


def draw_sample(sample: Sample) -> Image.Image:
    """One sample: the mask green, ignored pixels dark, boxes yellow, points red, and id, difficulty and query below."""
    scale = TILE / max(sample.image.size)
    size = (max(1, round(sample.image.width * scale)), max(1, round(sample.image.height * scale)))
    picture = np.asarray(sample.image.resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
    for mask, color, strength in ((sample.ignore, GREY, 0.7), (sample.mask, GREEN, 0.5)):
        if mask is not None and mask.any():
            picture = _tint(picture, mask, color, strength, size)
    tile = Image.new("RGB", (TILE, TILE + TEXT_LINES * LINE + 6), "white")
    tile.paste(Image.fromarray(picture.astype(np.uint8)), ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
    _draw_targets(tile, sample, scale, ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
    _draw_text(tile, sample)
    return tile


def draw_contact_sheet(samples: Iterable[Sample], path: str | Path, columns: int = 6) -> None:
    """Writes the samples' pictures side by side as a PNG file."""
    tiles = [draw_sample(sample) for sample in samples]
    if not tiles:
        raise ValueError("there is no sample to draw")
    columns = min(columns, len(tiles))
    width, height = tiles[0].size
    sheet = Image.new("RGB", (columns * (width + 8), math.ceil(len(tiles) / columns) * (height + 8)), (225, 225, 225))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(tile, (column * (width + 8) + 4, row * (height + 8) + 4))
    sheet.save(path)


def _tint(
    picture: np.ndarray, mask: np.ndarray, color: tuple[int, int, int], strength: float, size: tuple[int, int]
) -> np.ndarray:
    share = np.asarray(Image.fromarray(mask).convert("L").resize(size, Image.Resampling.BOX), dtype=np.float32) / 255
    weight = share[..., None] * strength
    return picture * (1 - weight) + np.array(color, dtype=np.float32) * weight


def _draw_targets(tile: Image.Image, sample: Sample, scale: float, corner: tuple[int, int]) -> None:
    draw = ImageDraw.Draw(tile)
    for target in sample.targets:
        x1, y1, x2, y2 = target.box_xyxy
        left, top = x1 * scale + corner[0], y1 * scale + corner[1]
        right, bottom = (x2 + 1) * scale + corner[0], (y2 + 1) * scale + corner[1]
        draw.rectangle([left, top, max(right, left + 1), max(bottom, top + 1)], outline=YELLOW, width=2)
        for x, y in target.points_xy:
            px, py = (x + 0.5) * scale + corner[0], (y + 0.5) * scale + corner[1]
            draw.ellipse([px - 4, py - 4, px + 4, py + 4], fill=RED, outline="white")


def _draw_text(tile: Image.Image, sample: Sample) -> None:
    draw = ImageDraw.Draw(tile)
    font = ImageFont.load_default(FONT_SIZE)
    rating = "not rated" if sample.difficulty is None else f"difficulty {sample.difficulty:.1f}"
    unknown = sample.mask is None and not sample.targets
    found = "truth unknown" if unknown else f"{len(sample.targets)} target(s)" + (", no mask" * (sample.mask is None))
    lines = [f"{_short(sample.id)} · {rating} · {found}"]
    lines += textwrap.wrap(sample.question, 46, max_lines=TEXT_LINES - 1, placeholder=" …")
    for number, line in enumerate(lines):
        color = (110, 110, 110) if number == 0 else (0, 0, 0)
        draw.text((4, TILE + 3 + number * LINE), line, fill=color, font=font)


def _short(text: str) -> str:
    return text if len(text) <= 22 else f"…{text[-21:]}"
