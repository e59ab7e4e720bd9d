"""Reading photographs the same way for every source."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pixelthink.failures import ImageFailure

MAX_IMAGE_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: as RGB they would take more than 300 MB each."""


TURNED = range(5, 9)
"""EXIF orientations that swap width and height."""

Size = tuple[int, int]
"""Width and height."""


class UnusableImage(ValueError):
    """A sample's image cannot be had; one line that names it.

    Attributes:
        cause: As evaluation counts it.
        size: Of the upright image, where its file says so all the same.
    """

    cause: ImageFailure

    def __init__(self, message: str, size: Size | None = None) -> None:
        super().__init__(message)
        self.size = size


class ImageLost(UnusableImage):
    """There is no file where an image should be."""

    cause = "image_missing"


class ImageUnreadable(UnusableImage):
    """What is there is no image, or a damaged one."""

    cause = "image_unreadable"


@dataclass
class BlankImages:
    """What is known of the images in whose place `open_rgb` gave blank ones.

    Attributes:
        sizes_known: Whether all of them have the size of the image that they stand for.
    """

    sizes_known: bool = True


_blank_images: ContextVar[BlankImages | None] = ContextVar("_blank_images", default=None)


@contextmanager
def blank_images() -> Iterator[BlankImages]:
    """Within it, `open_rgb` gives a blank image in the place of one that it cannot read, so that a source can say all
    the rest of a sample."""
    blanks = BlankImages()
    token = _blank_images.set(blanks)
    try:
        yield blanks
    finally:
        _blank_images.reset(token)


def open_rgb(source: str | Path | bytes, name: str | None = None, size: Size | None = None) -> Image.Image:
    """Reads an image wholly, upright and in RGB.

    The EXIF orientation is applied, as labelme and OpenCV's `imread` (the released ReasonSeg reader) do, so pixels are
    where annotators saw them. Any mode becomes RGB: palettes are resolved, grey is repeated, 16-bit grey keeps its
    upper 8 bits, transparency is dropped, CMYK is converted.

    Args:
        source: A path, or the bytes of an image file.
        name: What to call the image in errors; the path by default.
        size: Of the upright image, where somebody else knows it; for `blank_images`.

    Raises:
        ImageLost: the file is missing; a `ValueError` whose one line begins with the name.
        ImageUnreadable: the file is truncated, larger than `MAX_IMAGE_PIXELS` or no image; one line that begins
            with the name.
    """
    try:
        return _read_rgb(source, name or ("image" if isinstance(source, bytes) else str(source)))
    except UnusableImage as error:
        if (blanks := _blank_images.get()) is None:
            raise
        known = [s for s in (size, error.size) if s is not None and min(s) > 0 and s[0] * s[1] <= MAX_IMAGE_PIXELS]
        blanks.sizes_known &= bool(known)
        return Image.new("RGB", known[0] if known else (1, 1))


def open_mask(data: bytes, name: str) -> np.ndarray:
    """A mask that is kept as an image file: bool (H, W), true where it is not black.

    Raises:
        ValueError: it cannot be read; that is an error of the annotation, so no `UnusableImage`.
    """
    try:
        return np.asarray(_read_rgb(data, name))[..., 0] > 0
    except UnusableImage as error:
        reason = str(error)
    raise ValueError(reason)  # out here, where no `UnusableImage` is its context


def _read_rgb(source: str | Path | bytes, name: str) -> Image.Image:
    """What `open_rgb` says, without blank images."""
    size: Size | None = None
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width} × {image.height} is over the limit of {MAX_IMAGE_PIXELS} pixels")
            size = _upright_size(image)
            image.load()
            upright = ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise ImageLost(f"{name}: there is no such image") from None
    except UnidentifiedImageError:
        raise ImageUnreadable(f"{name}: not a readable image: of no known format") from None
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).replace(repr(str(source)), "the file").split())[:200]
        raise ImageUnreadable(f"{name}: not a readable image: {reason}", size) from None
    if upright.mode.startswith("I"):  # 16-bit grey, which Pillow may hold in 32 bits
        upright = Image.fromarray((np.clip(np.asarray(upright), 0, 65535) >> 8).astype(np.uint8))
    return upright.convert("RGB")


def _upright_size(image: Image.Image) -> Size:
    """Size of an image once it has been turned upright; told by the file's beginning, without decoding."""
    turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation) in TURNED
    return (image.height, image.width) if turned else image.size


def encode_png(image: Image.Image) -> bytes:
    """The image as a PNG file, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()
