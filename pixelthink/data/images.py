"""Reading photographs the same way for every source."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_IMAGE_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: as RGB they would take more than 300 MB each."""


class ImageLost(ValueError):
    """There is no file where an image should be."""


def open_rgb(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Reads an image wholly, upright and in RGB.

    The EXIF orientation is applied, as labelme and OpenCV's `imread` (the released ReasonSeg reader) do, so pixels are
    where annotators saw them. Any mode becomes RGB: palettes are resolved, grey is repeated, 16-bit grey keeps its
    upper 8 bits, transparency is dropped, CMYK is converted.

    Args:
        source: A path, or the bytes of an image file.
        name: What to call the image in errors; the path by default.

    Raises:
        ImageLost: the file is missing; a `ValueError` whose one line begins with the name.
        ValueError: the file is truncated, larger than `MAX_IMAGE_PIXELS` or no image; one line that begins
            with the name.
    """
    name = name or ("image" if isinstance(source, bytes) else str(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width} × {image.height} is over the limit of {MAX_IMAGE_PIXELS} pixels")
            image.load()
            upright = ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise ImageLost(f"{name}: there is no such image") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).replace(repr(str(source)), "the file").split())[:200]
        raise ValueError(f"{name}: not a readable image: {reason}") from None
    if upright.mode.startswith("I"):  # 16-bit grey, which Pillow may hold in 32 bits
        upright = Image.fromarray((np.clip(np.asarray(upright), 0, 65535) >> 8).astype(np.uint8))
    return upright.convert("RGB")


def encode_png(image: Image.Image) -> bytes:
    """The image as a PNG file, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()
