"""A picture of many samples, to be looked at before training on them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from pathlib import Path

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
    corner = ((TILE - size[0]) // 2, (TILE - size[1]) // 2)
    picture = sample.image.resize(size, Image.Resampling.BILINEAR)
    for mask, color, strength in ((sample.ignore, GREY, 0.7), (sample.mask, GREEN, 0.5)):
        if mask is not None:
            share = Image.fromarray(mask).convert("L").resize(size, Image.Resampling.BOX)
            picture.paste(color, mask=share.point(lambda value, strength=strength: value * strength))
    tile = Image.new("RGB", (TILE, TILE + TEXT_LINES * LINE + 6), "white")
    tile.paste(picture, corner)
    draw = ImageDraw.Draw(tile)
    for target in sample.targets:
        x1, y1, x2, y2 = target.box_xyxy
        left, top = x1 * scale + corner[0], y1 * scale + corner[1]
        right, bottom = (x2 + 1) * scale + corner[0], (y2 + 1) * scale + corner[1]
        draw.rectangle([left, top, max(right, left + 1), max(bottom, top + 1)], outline=YELLOW, width=2)
        for x, y in target.points_xy:
            px, py = (x + 0.5) * scale + corner[0], (y + 0.5) * scale + corner[1]
            draw.ellipse([px - 4, py - 4, px + 4, py + 4], fill=RED, outline="white")
    rating = "not rated" if sample.difficulty is None else f"difficulty {sample.difficulty:.1f}"
    unknown = sample.mask is None and not sample.targets
    found = "truth unknown" if unknown else f"{len(sample.targets)} target(s)" + (", no mask" * (sample.mask is None))
    name = sample.id if len(sample.id) <= 22 else f"…{sample.id[-21:]}"
    lines = textwrap.wrap(sample.question, 46, max_lines=TEXT_LINES - 1, placeholder=" …")
    font = ImageFont.load_default(FONT_SIZE)
    draw.text((4, TILE + 3), f"{name} · {rating} · {found}", fill=(110, 110, 110), font=font)
    for number, line in enumerate(lines, start=1):
        draw.text((4, TILE + 3 + number * LINE), line, fill="black", font=font)
    return tile


def draw_contact_sheet(samples: Iterable[Sample], path: str | Path, columns: int = 6) -> None:
    """Writes the pictures of one or more samples side by side as a PNG file."""
    tiles = [draw_sample(sample) for sample in samples]
    columns = min(columns, len(tiles))
    width, height = tiles[0].size
    sheet = Image.new("RGB", (columns * (width + 8), math.ceil(len(tiles) / columns) * (height + 8)), (225, 225, 225))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(tile, (column * (width + 8) + 4, row * (height + 8) + 4))
    sheet.save(path)
