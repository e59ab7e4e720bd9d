"""The ReasonSeg reader: golden masks, real photos, and every kind of damaged folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelthink.data.images import open_rgb
from pixelthink.data.reasonseg import rasterize
from pixelthink.data.sources.reasonseg import ReasonSeg
from pixelthink.data.validation import check_sample
from pixelthink.geometry import Target, encode_rle
from pixelthink.types import Sample
from tests.photos import PHOTOS, needs_photos
from tests.support import golden_rows

SQUARE = [[2, 2], [7, 2], [7, 7], [2, 7]]


def write(folder: Path, name: str = "a", size: tuple[int, int] = (12, 10), **changes: Any) -> None:
    """One image of width × height and its annotation: a target square of 6 × 6 pixels."""
    Image.new("RGB", size, (200, 100, 50)).save(folder / f"{name}.jpg")
    shapes = [{"label": "target", "points": SQUARE}]
    annotation = {"text": ["the square", "the box"], "is_sentence": False, "shapes": shapes} | changes
    (folder / f"{name}.json").write_text(json.dumps(annotation))


def opened(folder: Path, **options: Any) -> ReasonSeg:
    source = ReasonSeg(str(folder), **options)
    source.setup()
    return source


@pytest.mark.parametrize("row", golden_rows("reasonseg_json.jsonl.gz"), ids=lambda row: str(row["id"]))
def test_masks_equal_the_released_reader(row: dict[str, Any]) -> None:
    target, ignore = rasterize(row["annotation"], row["height"], row["width"])
    assert encode_rle(target) == row["expected"]["target"]
    assert encode_rle(ignore) == row["expected"]["ignore"]


def test_only_the_exact_label_flag_is_skipped() -> None:
    shapes = [{"label": label, "points": SQUARE} for label in ("the red flag", "Flag")]
    target, ignore = rasterize({"shapes": shapes}, 10, 12)
    assert target.sum() == 36
    assert not ignore.any()


def test_of_equal_areas_the_earlier_shape_stays_on_top() -> None:
    shapes = [{"label": label, "points": SQUARE} for label in ("ignore", "target")]
    target, ignore = rasterize({"shapes": shapes}, 10, 12)
    assert (int(target.sum()), int(ignore.sum())) == (0, 36)


def test_a_sample(tmp_path: Path) -> None:
    write(tmp_path)
    sample = check_sample(opened(tmp_path)[0])
    assert (sample.id, sample.question, sample.difficulty) == ("a", "the square", None)
    assert sample.image.size == (12, 10)
    assert sample.mask is not None
    assert sample.mask.sum() == 36
    assert sample.targets[0].box_xyxy == (2.0, 2.0, 7.0, 7.0)


def test_all_texts_and_difficulties(tmp_path: Path) -> None:
    write(tmp_path)
    scores = tmp_path / "scores.list"
    scores.write_text(json.dumps([{"image_id": "a", "difficulty_score_model": 4.5}]))
    source = opened(tmp_path, texts="all", difficulty_file=str(scores))
    assert [(s.id, s.question, s.difficulty) for s in (source[0], source[1])] == [
        ("a#0", "the square", 4.5),
        ("a#1", "the box", 4.5),
    ]
    with pytest.raises(IndexError):
        source[2]


def test_cp1252_text(tmp_path: Path) -> None:
    write(tmp_path)
    annotation = {"text": ["the café"], "shapes": [{"label": "target", "points": SQUARE}]}
    (tmp_path / "a.json").write_bytes(json.dumps(annotation, ensure_ascii=False).encode("cp1252"))
    assert opened(tmp_path)[0].question == "the café"


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    write(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (12, 10)).save(tmp_path / "a.jpg", exif=exif)
    sample = opened(tmp_path)[0]
    assert sample.image.size == (10, 12)
    assert check_sample(sample).mask.shape == (12, 10)  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 5), 0x8001, dtype=np.uint16))
    else:
        image = Image.new("L", (5, 4), 255).convert(mode)
    image.save(tmp_path / "x.png")
    read = open_rgb(tmp_path / "x.png")
    assert (read.mode, read.size) == ("RGB", (5, 4))
    assert read.getpixel((0, 0)) == ((128,) * 3 if mode == "I;16" else (255,) * 3)


def damage_nothing(folder: Path) -> None:
    (folder / "a.json").unlink()
    (folder / "a.jpg").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "a.jpg").unlink(), r"a\.jpg: there is no such image"),
        (lambda f: (f / "a.json").unlink(), r"a\.jpg: there is no annotation"),
        (lambda f: (f / "a.jpg").write_bytes((f / "a.jpg").read_bytes()[:400]), r"a\.jpg: not a readable image"),
        (lambda f: (f / "a.jpg").write_bytes(b"\x89PNG, or not"), r"a\.jpg: not a readable image"),
        (lambda f: (f / "a.jpg").write_bytes(b""), r"a\.jpg: not a readable image"),
        (lambda f: (f / "a.json").write_text('{"text": ['), r"a\.json: not JSON"),
        (lambda f: (f / "a.json").write_bytes(b'{"text": "\x81"}'), r"a\.json: neither UTF-8 nor cp1252"),
        (lambda f: (f / "a.json").write_text("[" * 100_000), r"a\.json: not usable JSON"),
        (lambda f: (f / "a.json").write_text("[]"), r"a\.json: a ReasonSeg annotation is"),
        (lambda f: write(f, text=[]), r"a\.json: \"text\" must hold"),
        (lambda f: write(f, text=["ok", " "]), r"a\.json: text 1 is empty"),
        (
            lambda f: write(f, shapes=[{"label": "t", "points": SQUARE[:2]}]),
            r"a\.json: shape 0 \(t\): .*3 points, got 2",
        ),
        (lambda f: write(f, shapes=[{"label": "t", "points": [[1, 2, 3]]}]), r"a\.json: shape 0 \(t\): \"points\""),
        (lambda f: write(f, shapes=[{"label": "t", "points": "x"}]), r"a\.json: shape 0 \(t\): \"points\""),
        (
            lambda f: write(f, shapes=[{"label": "t", "points": [[1, 2]] * 3 + [[1, 1e30]]}]),
            r"a\.json: shape 0 .*beyond",
        ),
        (lambda f: write(f, shapes=[{"points": SQUARE}]), r"a\.json: shape 0 has no label"),
        (damage_nothing, "no pairs"),
    ],
)
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, damage: Any, message: str) -> None:
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        opened(tmp_path)[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([{"image_id": "b", "difficulty_score_model": 3}], "no difficulty for 1 of 1 ids: 'a'"),
        ([{"image_id": "a", "difficulty_score_model": 0.5}], r"1 outside 1 to 10: 'a' \(0.5\)"),
        ([{"image_id": "a", "difficulty_score_model": float("nan")}], r"1 not a number: 'a' \(nan\)"),
        ([{"image_id": "a", "difficulty_score_model": None}], "1 null: 'a'"),
        ([{"image_id": "a", "difficulty_score_model": 3}] * 2, "1 with an id that came before: 'a'"),
        ([{"image_id": "a"}], "1 without image_id and difficulty_score_model: item 0"),
        ({"a": 3}, "list"),
    ],
)
def test_bad_difficulties(tmp_path: Path, scores: Any, message: str) -> None:
    write(tmp_path)
    file = tmp_path / "scores.list"
    file.write_text(json.dumps(scores))
    with pytest.raises(ValueError, match=rf"scores\.list.*{message}"):
        opened(tmp_path, difficulty_file=str(file))


def test_missing_folder_and_difficulty_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        opened(tmp_path / "nowhere")
    write(tmp_path)
    with pytest.raises(ValueError, match=r"none\.json: cannot be read"):
        opened(tmp_path, difficulty_file=str(tmp_path / "none.json"))
    with pytest.raises(RuntimeError, match="setup"):
        len(ReasonSeg(str(tmp_path)))


@needs_photos
def test_real_photos_with_foreign_json_beside_them() -> None:
    source = opened(PHOTOS, texts="all")
    assert [check_sample(source[i]).id for i in range(len(source))] == [
        "2011_000003#0",
        "2011_000006#0",
        "2011_000006#1",
    ]
    first = source[0]
    assert first.image.size == (500, 338)
    assert first.mask is not None
    assert first.ignore is not None
    assert (int(first.mask.sum()), int(first.ignore.sum())) == (881, 9505)


GOOD_MASK = np.zeros((4, 6), dtype=bool)
GOOD_MASK[1:3, 1:3] = True
INSIDE = Target((1.0, 1.0, 2.0, 2.0), ((1.0, 1.0), (2.0, 2.0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": np.ones((6, 4), dtype=bool)}, r"the mask has shape \(6, 4\), the image needs \(4, 6\)"),
        ({"mask": np.ones((4, 6))}, "mask must be bool"),
        ({"ignore": np.ones((4, 7), dtype=bool)}, "ignore region has shape"),
        ({"difficulty": 0.99}, "difficulty must be .* got '0.99'"),
        ({"difficulty": float("nan")}, "difficulty"),
        ({"question": " \n"}, "question is empty"),
        ({"mask": np.zeros((4, 6), dtype=bool)}, "mask is empty"),
        ({"targets": (Target((1.0, 1.0, 6.5, 2.0), INSIDE.points_xy),)}, "box .* is not inside"),
        ({"targets": (Target((2.0, 1.0, 1.0, 2.0), INSIDE.points_xy),)}, "box .* is not inside"),
        ({"targets": (Target(INSIDE.box_xyxy, ((1.0, 1.0), (2.0, float("nan")))),)}, "point .* is not inside"),
    ],
)
def test_check_sample_names_the_sample(changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"mask": GOOD_MASK, "targets": (INSIDE,), "difficulty": 10} | changes
    sample = Sample("row 7", Image.new("RGB", (6, 4)), **({"question": "where?"} | fields))
    with pytest.raises(ValueError, match=f"sample 'row 7'.*{message}") as caught:
        check_sample(sample)
    assert "\n" not in str(caught.value)


def test_check_sample_lets_good_and_unknown_truth_pass() -> None:
    image = Image.new("RGB", (6, 4))
    for sample in (
        Sample("a", image, "q", GOOD_MASK, GOOD_MASK, (INSIDE,), 1.0),
        Sample("b", image, "q"),
        Sample("c", image, "q", np.zeros((4, 6), dtype=bool)),
    ):
        assert check_sample(sample) is sample
