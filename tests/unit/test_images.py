"""Images as they lie about: every mode, turned, broken, absurdly large."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelthink.data.images import encode_png, open_rgb


def saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_undone(orientation: int) -> None:
    upright = Image.new("RGB", (40, 24), "blue")
    upright.paste((255, 0, 0), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation → transposition that makes the stored image
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    read = open_rgb(saved(stored, format="JPEG", quality=100, exif=exif))
    assert read.size == (40, 24)
    assert np.abs(np.asarray(read).astype(int) - np.asarray(upright)).mean() < 8


def test_cmyk_and_transparency() -> None:
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    red = open_rgb(saved(cmyk, format="JPEG", quality=100)).getpixel((0, 0))
    assert isinstance(red, tuple)
    assert red[0] > 240
    assert max(red[1:]) < 15
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert open_rgb(saved(clear, format="PNG")).getpixel((0, 0)) == (10, 20, 30)
    palette = Image.new("RGB", (4, 4), (10, 20, 30)).quantize(2)
    palette.info["transparency"] = 0
    assert open_rgb(saved(palette, format="PNG")).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_the_upper_eight(form: str) -> None:
    values = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=np.uint16)
    read = np.asarray(open_rgb(saved(Image.fromarray(values), format=form)))[..., 0]
    assert read.tolist() == [[0, 0, 1], [128, 254, 255]]


def bomb(width: int, height: int) -> bytes:
    """A valid PNG header of any size, without its pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(11_000, 11_000), (60_000, 60_000), (2**31 - 1, 1)])
def test_absurdly_large_images_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"bomb\.png: not a readable image: .*(limit|size|pixels)") as caught:
        open_rgb(bomb(*size), "bomb.png")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_of_every_format_are_one_line(tmp_path: Path, form: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    whole = saved(noise, format=form)
    for length in (0, 1, 10, len(whole) // 2):
        path = tmp_path / "x.img"
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.img: not a readable image") as caught:
            open_rgb(path)
        assert "\n" not in str(caught.value)


def test_png_loses_nothing() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    assert (np.asarray(open_rgb(encode_png(noise))) == np.asarray(noise)).all()


def test_missing_and_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jpg: there is no such image"):
        open_rgb(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="not a readable image"):
        open_rgb(tmp_path)
