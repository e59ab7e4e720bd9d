"""Files of predictions: their names, where they go, and what is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelthink.callbacks.drawing import PREDICTED_COLOR
from pixelthink.callbacks.prediction_writer import claim_folder, draw_overlay, file_names
from pixelthink.errors import FileError
from pixelthink.files.atomic import write_atomically
from pixelthink.geometry import CoordinateFrame, Target
from pixelthink.parsing import parse_completion
from pixelthink.types import Completion, Prediction, Prompt, Sample


def prediction(size: tuple[int, int] = (40, 30), mask: np.ndarray | None = None) -> Prediction:
    """A prediction on a grey image, of a box with two points."""
    sample = Sample("x", Image.new("RGB", size, (100, 100, 100)), "what?")
    prompt = Prompt(sample, (), sample.image, CoordinateFrame(size, size), ())
    completion = Completion((1,), (0.0,), "", "stop", 0, None)
    found = np.zeros(size[::-1], dtype=bool) if mask is None else mask
    target = Target((5.0, 5.0, 34.0, 24.0), ((20.0, 15.0), (12.0, 15.0)))
    return Prediction(prompt, completion, parse_completion(""), found, None, (target,))


def test_names_keep_what_is_safe_and_differ_on_any_disk() -> None:
    ids = ["photo", "Photo", "a/b\\c: d?", "../../etc/passwd", "…", "", "日本 語", "photo-2", "CON*", "x" * 300]
    names = file_names(ids)
    assert list(names) == ids
    assert [names[i] for i in ids[:9]] == [
        *("photo", "Photo-2", "a_b_c_d", "etc_passwd", "sample", "sample-2", "日本_語", "photo-2-2", "CON")
    ]
    assert len(names["x" * 300]) == 100
    assert len({name.casefold() for name in names.values()}) == len(ids)


def test_long_names_are_cut_between_characters() -> None:
    name = file_names(["語" * 50])["語" * 50]
    assert name == "語" * 33
    with pytest.raises(ValueError, match="two samples have the id 'a'"):
        file_names(["a", "a"])


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    wanted = tmp_path / "deep/out"
    assert claim_folder(wanted, numbered=True) == wanted
    assert claim_folder(wanted, numbered=False) == wanted  # still empty
    (wanted / "mine").touch()
    assert claim_folder(wanted, numbered=True) == tmp_path / "deep/out-2"
    (tmp_path / "deep/out-2/mine").touch()
    (tmp_path / "deep/out-3").touch()
    assert claim_folder(wanted, numbered=True) == tmp_path / "deep/out-4"
    with pytest.raises(FileError, match=r"there is something at .* already; nothing was written"):
        claim_folder(wanted, numbered=False)
    with pytest.raises(OSError, match=r"predictions cannot be written to .*: Not a directory"):
        claim_folder(wanted / "mine/below", numbered=True)
    assert sorted(path.name for path in wanted.iterdir()) == ["mine"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomically(target, None)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert target.read_bytes() == b"old"


def test_an_overlay_tints_the_mask_and_outlines_what_was_answered() -> None:
    mask = np.zeros((30, 40), dtype=bool)
    mask[8:23, 8:30] = True
    pixels = np.asarray(draw_overlay(prediction(mask=mask)))
    assert pixels.shape == (30, 40, 3)
    tinted = tuple(int(0.55 * 100 + 0.45 * value) for value in PREDICTED_COLOR)
    assert tuple(pixels[10, 25]) == tinted
    assert tuple(pixels[2, 2]) == (100, 100, 100)
    assert tuple(pixels[5, 34]) == PREDICTED_COLOR  # the box's corner
    assert tuple(pixels[15, 20]) == PREDICTED_COLOR  # a point
    assert tuple(pixels[15, 30]) == (255, 255, 255)  # outside the mask's edge
    assert tuple(pixels[15, 29]) == PREDICTED_COLOR  # inside of it


def test_lines_grow_with_the_image() -> None:
    pixels = np.asarray(draw_overlay(prediction((4000, 40))))
    column = (pixels[:, 20] == PREDICTED_COLOR).all(axis=-1)
    assert column.sum() >= 10
