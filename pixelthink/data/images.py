"""Reading photographs the same way for every source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def open_rgb(path: str | Path) -> Image.Image:
    """Reads an image wholly, upright and in RGB.

    The EXIF orientation is applied, as labelme and OpenCV's `imread` (the released ReasonSeg reader) do, so pixels are
    where annotators saw them. Any mode becomes RGB: palettes are resolved, grey is repeated, 16-bit grey keeps its
    upper 8 bits, transparency is dropped.

    Raises:
        ValueError: the file is missing, truncated or no image; one line that begins with the path.
    """
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return upright.convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such image") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).replace(repr(str(path)), "the file").split())
        raise ValueError(f"{path}: not a readable image: {reason}") from None
