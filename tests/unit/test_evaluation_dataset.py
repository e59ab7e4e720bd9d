"""What evaluation knows of a sample with a missing or damaged image, source by source; and what still stops it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelthink.data.base import SampleSource
from pixelthink.data.evaluation_dataset import EvaluationDataset
from pixelthink.data.images import BlankImages, ImageMissing, ImageUnreadable, open_rgb
from pixelthink.data.sources.checked import Checked
from pixelthink.data.sources.coco import COCO
from pixelthink.data.sources.labelme import LabelMe
from pixelthink.data.sources.mixture import Mixture
from pixelthink.data.sources.questions import OneImage
from pixelthink.data.sources.reasonseg import ReasonSeg
from pixelthink.data.sources.reasonseg_parquet import ReasonSegParquet
from pixelthink.types import Sample
from tools.prepare_data import main as prepare_data

CORNERS = [[4, 2], [20, 2], [20, 30], [4, 30]]


def photo(path: Path, **options: object) -> Path:
    """A file of 60 × 40 pixels that is long enough to be cut."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)  # type: ignore[arg-type]
    return path


def cut(path: Path, keep: int = 900) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def opened(source: SampleSource) -> EvaluationDataset:
    source.setup()
    return EvaluationDataset(source)


def same_but_for_the_image(found: Sample, before: Sample) -> bool:
    assert found.mask is not None
    assert before.mask is not None
    masks = np.array_equal(found.mask, before.mask) and found.image.size == before.image.size
    known = [
        (s.id, s.question, s.targets, s.difficulty, s.index, s.object_id, s.meta.get("file")) for s in (found, before)
    ]
    return masks and known[0] == known[1] and not np.asarray(found.image).any()


@pytest.fixture
def reasonseg(tmp_path: Path) -> Path:
    photo(tmp_path / "x.jpg")
    shapes = [{"label": "target", "points": CORNERS}]
    (tmp_path / "x.json").write_text(json.dumps({"text": ["the box"], "is_sentence": False, "shapes": shapes}))
    (tmp_path / "hard.list").write_text(json.dumps([{"image_id": "x", "difficulty_score_model": 8}]))
    return tmp_path


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_truncated_image_says_its_size_and_so_the_target(reasonseg: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(reasonseg / "x.jpg", exif=exif)
    source = opened(ReasonSeg(str(reasonseg), difficulty_file=str(reasonseg / "hard.list")))
    before = source[0]
    assert before.image.size == ((60, 40) if orientation == 1 else (40, 60))
    cut(reasonseg / "x.jpg")
    found = source[0]
    assert same_but_for_the_image(found, before)
    assert found.missing is not None
    assert found.missing.cause == "image_unreadable"
    assert found.missing.reason.startswith(f"{reasonseg}/x.jpg: not a readable image: image file is truncated")


@pytest.mark.parametrize("damage", ["empty", "text", "gone", "a folder"])
def test_an_image_of_unknown_size_leaves_question_and_difficulty(reasonseg: Path, damage: str) -> None:
    source = opened(ReasonSeg(str(reasonseg), difficulty_file=str(reasonseg / "hard.list")))
    file = reasonseg / "x.jpg"
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage != "gone":
        file.write_text("" if damage == "empty" else "no image at all")
    found = source[0]
    assert (found.id, found.question, found.difficulty, found.object_id) == ("x", "the box", 8.0, "x")
    assert (found.mask, found.ignore, found.targets, found.index) == (None, None, (), 0)
    assert found.missing is not None
    assert found.missing.cause == ("image_missing" if damage == "gone" else "image_unreadable")
    reasons = {
        "gone": "there is no such image",
        "a folder": "not a readable image: [Errno 21] Is a directory: the file",
    }
    assert found.missing.reason == f"{file}: {reasons.get(damage, 'not a readable image: of no known format')}"


def test_annotations_that_say_the_size_keep_the_target_of_a_missing_image(tmp_path: Path) -> None:
    photo(tmp_path / "x.jpg")
    polygon = [value for corner in CORNERS for value in corner]
    data = {
        "images": [{"id": 1, "file_name": "x.jpg", "width": 60, "height": 40}],
        "annotations": [{"id": 2, "image_id": 1, "category_id": 3, "segmentation": [polygon]}],
        "categories": [{"id": 3, "name": "dog"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(data))
    coco = {"instances": str(tmp_path / "instances.json"), "images": str(tmp_path)}
    options = [f"--source.{name}={value}" for name, value in coco.items()]
    assert prepare_data(["--source=COCO", *options, "--images=path", f"--output={tmp_path}/checked"]) == 0
    sources = [COCO(**coco), Checked(str(tmp_path / "checked")), Mixture({"m": COCO(**coco)})]
    all_opened = [opened(source) for source in sources]
    before = [source[0] for source in all_opened]
    for cause in ("image_unreadable", "image_missing"):
        (tmp_path / "x.jpg").write_bytes(b"?") if cause == "image_unreadable" else (tmp_path / "x.jpg").unlink()
        for source, sample in zip(all_opened, before, strict=True):
            found = source[0]
            assert same_but_for_the_image(found, sample)
            assert found.missing is not None
            assert found.missing.cause == cause


def test_damaged_bytes_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    mask = np.zeros((40, 60), dtype=bool)
    mask[2:30, 4:20] = True
    row = {"image": {"bytes": b"GIF89a?", "path": None}, "text": "the box", "mask": mask.tolist()}
    pq.write_table(pa.Table.from_pylist([row | {"image_id": "i", "ann_id": 0}]), tmp_path / "test.parquet")
    found = opened(ReasonSegParquet(str(tmp_path / "test.parquet")))[0]
    assert np.array_equal(found.mask, mask)  # type: ignore[arg-type]
    assert (found.id, found.question) == ("i#0", "the box")
    assert found.missing is not None
    assert (found.missing.cause, "not a readable image" in found.missing.reason) == ("image_unreadable", True)


def test_one_image_that_is_asked_about_keeps_its_question(tmp_path: Path) -> None:
    file = photo(tmp_path / "x.png")
    source = opened(OneImage(str(file), "what?"))
    cut(file, 40)
    found = source[0]
    assert (found.id, found.question, found.mask, found.meta) == ("x", "what?", None, {"file": str(file)})


def test_a_wrong_truth_stops_with_or_without_its_image(reasonseg: Path) -> None:
    (reasonseg / "x.json").write_text(json.dumps({"text": ["a"], "shapes": [{"label": "t", "points": CORNERS[:2]}]}))
    source = opened(ReasonSeg(str(reasonseg)))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"x\.json: shape 0 \(t\): a polygon needs 3 points, got 2"):
            source[0]
        cut(reasonseg / "x.jpg")


def test_a_damaged_mask_is_no_damaged_image(tmp_path: Path) -> None:
    photo(tmp_path / "x.jpg")
    shape = {"label": "dog", "shape_type": "mask", "points": [[0, 0], [5, 5]], "mask": "aGVsbG8="}
    (tmp_path / "x.json").write_text(json.dumps({"imagePath": "x.jpg", "shapes": [shape]}))
    with pytest.raises(ValueError, match=r"x\.json: shape 0 \(dog\): its mask: not a readable image"):
        opened(LabelMe(str(tmp_path)))[0]


def test_blank_images_stand_in_for_missing_ones(tmp_path: Path) -> None:
    blanks = BlankImages()
    assert blanks(tmp_path / "gone.png", size=(7, 5)).size == (7, 5)
    assert blanks.sizes_known
    assert blanks(tmp_path / "gone.png", size=(100_000, 100_000)).size == (1, 1), "no image is that large"
    assert not blanks.sizes_known
    with pytest.raises(ImageMissing):
        open_rgb(tmp_path / "gone.png", size=(7, 5))
    with pytest.raises(ImageUnreadable):
        open_rgb(b"?", size=(7, 5))
