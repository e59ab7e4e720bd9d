"""Small copies of images beside the results, for reports that shall not depend on where the data was."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from PIL import Image

from pixelthink.files.atomic import write_atomically

THUMBNAILS = "thumbnails"


def save_thumbnail(image: Image.Image, folder: Path, side: int) -> str:
    """Saves a JPEG whose longer side is at most `side`, named after its content: questions of one image share one.

    Returns:
        Its path relative to the folder.

    Raises:
        OSError: it cannot be written.
    """
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    name = f"{THUMBNAILS}/{hashlib.sha256(buffer.getvalue()).hexdigest()[:20]}.jpg"
    path = folder / name
    if not path.is_file():
        write_atomically(path, buffer.getvalue(), shared=True)
    return name


def remove_unused_thumbnails(folder: Path, used: set[str]) -> None:
    """Removes the thumbnails of earlier results that no row names any more."""
    for path in (folder / THUMBNAILS).glob("*"):
        if f"{THUMBNAILS}/{path.name}" not in used:
            path.unlink(missing_ok=True)
