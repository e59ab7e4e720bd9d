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


def data_uri(path: Path, side: int) -> str | None:
    """A picture as a `data:` URI of at most about `MAX_BYTES` of picture; None where the file is not there any more.

    Args:
        path: The picture.
        side: Longer side in pixels to which larger ones are reduced.

    Raises:
        ValueError: the file is there and no picture; one line that begins with its path.
    """
    if not path.is_file():
        return None
    data = path.read_bytes()
    image = open_rgb(data, str(path))
    if max(image.size) > side or len(data) > MAX_BYTES or not data.startswith(b"\xff\xd8"):
        return "data:image/webp;base64," + base64.b64encode(_webp(image, side)).decode("ascii")
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")


def _webp(image: Image.Image, side: int) -> bytes:
    """The picture reduced, in the first quality that is small enough, else in the last."""
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    data = b""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, format="WEBP", quality=quality)
        data = buffer.getvalue()
        if len(data) <= MAX_BYTES:
            break
    return data
