"""Reading photographs the same way for every source."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pixelthink.errors import FileError
from pixelthink.failures import ImageFailure

MAX_IMAGE_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: as RGB they would take more than 300 MB each."""

TURNED = range(5, 9)
"""EXIF orientations that swap width and height."""

Size = tuple[int, int]
"""Width and height."""


class UnusableImage(FileError):
    """An image that is missing or cannot be read; one line that names it.

    Attributes:
        cause: The cause of failure under which evaluation counts it.
        size: Size of the upright image, from the annotations or the beginning of the file; None where neither says it.
    """

    cause: ImageFailure
    size: Size | None = None


class ImageMissing(UnusableImage):
    """There is no file where an image should be."""

    cause = "image_missing"


class ImageUnreadable(UnusableImage):
    """The file is no image, or a damaged one."""

    cause = "image_unreadable"


class ImageOpener(Protocol):
    """What `ImageSource.read` opens images with: `open_rgb`, or `BlankImages` in its place."""

    def __call__(self, file: str | Path | bytes, name: str | None = None, size: Size | None = None) -> Image.Image: ...


def open_rgb(file: str | Path | bytes, name: str | None = None, size: Size | None = None) -> Image.Image:
    """Reads all of an image, upright and in RGB.

    The EXIF orientation is applied, as labelme and OpenCV's `imread` (the released ReasonSeg reader) do, so pixels are
    where annotators saw them. Any mode becomes RGB: palettes are resolved, grey is repeated, 16-bit grey keeps its
    upper 8 bits, transparency is dropped, CMYK is converted.

    Args:
        file: A path, or the bytes of an image file.
        name: What to call the image in errors; the path by default.
        size: Size of the upright image, where the annotations say it; errors carry it.

    Raises:
        ImageMissing: there is no such file; one line that begins with the name.
        ImageUnreadable: the file is truncated, larger than `MAX_IMAGE_PIXELS` or no image; one line as well.
    """
    name = name or ("image" if isinstance(file, bytes) else str(file))
    own: Size | None = None
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width} × {image.height} is over the limit of {MAX_IMAGE_PIXELS} pixels")
            turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation) in TURNED
            own = (image.height, image.width) if turned else image.size
            image.load()
            upright = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, Image.DecompressionBombError) as error:
        unusable = _unusable(error, file, name)
        known = [s for s in (size, own) if s is not None and min(s) > 0 and s[0] * s[1] <= MAX_IMAGE_PIXELS]
        unusable.size = known[0] if known else None
        raise unusable from None
    if upright.mode.startswith("I"):  # 16-bit grey, which Pillow may hold in 32 bits
        upright = Image.fromarray((np.clip(np.asarray(upright), 0, 65535) >> 8).astype(np.uint8))
    return upright.convert("RGB")


def _unusable(error: Exception, file: str | Path | bytes, name: str) -> UnusableImage:
    """What an error of Pillow means."""
    if isinstance(error, FileNotFoundError):
        return ImageMissing(f"{name}: there is no such image")
    if isinstance(error, UnidentifiedImageError):
        return ImageUnreadable(f"{name}: not a readable image: of no known format")
    reason = " ".join(str(error).replace(repr(str(file)), "the file").split())[:200]
    return ImageUnreadable(f"{name}: not a readable image: {reason}")


class BlankImages:
    """Opens images as `open_rgb`, with a blank one in place of one that cannot be read.

    Attributes:
        sizes_known: Whether every blank image has the size of the image it stands for; the others have one pixel.
    """

    def __init__(self) -> None:
        self.sizes_known = True

    def __call__(self, file: str | Path | bytes, name: str | None = None, size: Size | None = None) -> Image.Image:
        try:
            return open_rgb(file, name, size)
        except UnusableImage as error:
            self.sizes_known &= error.size is not None
            return Image.new("RGB", error.size or (1, 1))


def open_mask(data: bytes, name: str) -> np.ndarray:
    """A mask in an image file: bool (H, W), true where it is not black.

    Raises:
        FileError: it cannot be read; no `UnusableImage`, since the annotation is wrong and not the sample's image.
    """
    try:
        return np.asarray(open_rgb(data, name))[..., 0] > 0
    except UnusableImage as error:
        reason = str(error)
    raise FileError(reason)  # out here, where no `UnusableImage` is its context


def encode_png(image: Image.Image) -> bytes:
    """The image as a PNG file, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()
