"""Pictures small enough to be embedded in a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from pixelthink.data.images import open_rgb

MAX_BYTES = 40_000
"""A JPEG of no more is embedded as it is."""
QUALITIES = (75, 60, 45, 30)
"""Of WebP; the first that is small enough is taken, else the last."""


def data_uri(path: Path, side: int) -> str | None:
    """A picture as a `data:` URI of at most about `MAX_BYTES` of picture; None where the file is not there any more.

    Args:
        path: The picture.
        side: Longer side in pixels to which larger ones are reduced.

    Raises:
        FileError: the file is there but is no picture; one line that begins with its path.
    """
    if not path.is_file():
        return None
    data, kind = path.read_bytes(), "jpeg"
    image = open_rgb(data, str(path))
    if max(image.size) > side or len(data) > MAX_BYTES or not data.startswith(b"\xff\xd8"):
        kind = "webp"
        image.thumbnail((side, side), Image.Resampling.BICUBIC)
        for quality in QUALITIES:
            buffer = io.BytesIO()
            image.save(buffer, format="WEBP", quality=quality)
            data = buffer.getvalue()
            if len(data) <= MAX_BYTES:
                break
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")
