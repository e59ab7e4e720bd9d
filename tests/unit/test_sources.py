"""Every published format, in exactly its layout, hand-made and small; and the photos in three formats."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelthink.data.base import ImageSource, SampleSource
from pixelthink.data.evaluation_dataset import EvaluationDataset
from pixelthink.data.images import ImageOpener, encode_png
from pixelthink.data.sources.coco import COCO
from pixelthink.data.sources.labelme import LabelMe
from pixelthink.data.sources.mixture import Mixture
from pixelthink.data.sources.reasonseg import ReasonSeg
from pixelthink.data.sources.reasonseg_diff import AnnotationFields, ReasonSegDiff
from pixelthink.data.sources.reasonseg_parquet import ReasonSegParquet
from pixelthink.data.sources.refcoco import GRefCOCO, RefCOCO
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.data.sources.training_rows import RefCOCOg840, VisionReasonerRows
from pixelthink.data.validation import check_sample
from pixelthink.geometry import encode_rle
from pixelthink.types import MissingImage, Sample
from tests.photos import PHOTOS, needs_photos

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

BOX = "<box>(84,84),(420,210)</box><points>(100,100),(200,150)</points>"
LEFT, RIGHT = [10, 10, 29, 10, 29, 29, 10, 29], [40.0, 10.0, 59.0, 10.0, 59.0, 29.0, 40.0, 29.0]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def photo(width: int = 80, height: int = 40, mode: str = "RGB") -> bytes:
    return encode_png(Image.new(mode, (width, height), 90))


def opened(source: SampleSource) -> SampleSource:
    source.setup()
    return source


def checked(source: SampleSource) -> list[Sample]:
    """All samples, each of them usable, under the ids that the source announces."""
    opened(source)
    samples = [check_sample(source[index]) for index in range(len(source))]
    assert [sample.id for sample in samples] == list(source.ids())
    return samples


def boxes(sample: Sample) -> list[tuple[float, ...]]:
    return [target.box_xyxy for target in sample.targets]


def problem(source: SampleSource, index: int = 0) -> str:
    """The one-line complaint of a row, or of the whole source."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        opened(source)[index]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- tables -------------------------------------------------------------------------------------------------------


def training_rows(path: Path, *solutions: str, **changes: list[Any]) -> Path:
    count = len(solutions)
    columns: dict[str, list[Any]] = {
        "id": [f"r{i}" for i in range(count)],
        "problem": ["the left box"] * count,
        "solution": list(solutions),
        "image": [{"bytes": photo(), "path": None}] * count,
    }
    pq.write_table(pa.table(columns | changes), path)
    return path


def test_refcocog840_rows_become_original_pixels(tmp_path: Path) -> None:
    file = training_rows(tmp_path / "train.parquet", BOX, BOX)
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps([{"image_id": f"r{i}", "difficulty_score_model": 2 + i} for i in range(2)]))
    samples = checked(RefCOCOg840(str(file), difficulty_file=str(scores)))
    assert [(s.id, s.question, s.difficulty, s.mask) for s in samples] == [
        ("r0", "the left box", 2.0, None),
        ("r1", "the left box", 3.0, None),
    ]
    assert samples[0].image.size == (80, 40)
    assert boxes(samples[0]) == [pytest.approx((8.0, 4.0, 40.0, 10.0))]
    assert samples[0].targets[0].points_xy[1] == pytest.approx((200 * 80 / 840, 150 * 40 / 840))


def test_a_box_that_ends_at_840_stays_as_it_is_written(tmp_path: Path) -> None:
    edge = "<box>(0,0),(840,840)</box><points>(1,1),(840,2)</points>"
    sample = checked(RefCOCOg840(str(training_rows(tmp_path / "a.parquet", edge))))[0]
    assert boxes(sample) == [(0.0, 0.0, 80.0, 40.0)]  # 840 in answer coordinates, as the released reward compares it


def test_the_layouts_of_a_table(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "hub" / "data").mkdir(parents=True)
    training_rows(tmp_path / "hub" / "data" / "train-00000-of-00002.parquet", BOX, id=["a"])
    training_rows(tmp_path / "hub" / "data" / "train-00001-of-00002.parquet", BOX, id=["b"])
    training_rows(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", BOX, id=["c"])
    assert [s.id for s in checked(RefCOCOg840(str(tmp_path / "hub")))] == ["a", "b"]
    assert "no file of split 'val'" in problem(RefCOCOg840(str(tmp_path / "hub"), split="val"))
    features = datasets.Features(
        {"id": datasets.Value("int64"), "problem": datasets.Value("string"), "solution": datasets.Value("string")}
        | {"image": datasets.Image()}
    )
    row = {"id": [7], "problem": ["q"], "solution": [BOX], "image": [Image.new("RGB", (84, 84))]}
    table = datasets.Dataset.from_dict(row, features=features)
    table.save_to_disk(str(tmp_path / "arrow"))
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "dict"))
    for folder in ("arrow", "dict"):
        assert [(s.id, s.image.size) for s in checked(RefCOCOg840(str(tmp_path / folder)))] == [("7", (84, 84))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solution": ["<box>(1,2)</box>"]}, r"a.parquet:0: solution is not <box>"),
        ({"solution": ["<box>(1,2),(900,4)</box><points>(1,2),(3,4)</points>"]}, r"a.parquet:0: .*outside the 840"),
        ({"solution": ["<box>(9,2),(1,4)</box><points>(1,2),(3,4)</points>"]}, "inside out"),
        ({"image": [{"bytes": b"no image", "path": None}]}, "a.parquet:0: id 'r0': image: not a readable image"),
        ({"image": [{"bytes": None, "path": "/nowhere.jpg"}]}, "a.parquet:0: /nowhere.jpg: there is no such image"),
        ({"image": [5]}, "a.parquet:0: id 'r0': image must be bytes"),
        ({"problem": [3]}, "a.parquet:0: problem is no text"),
    ],
)
def test_a_bad_training_row_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = training_rows(tmp_path / "a.parquet", BOX, **changes)
    text = problem(RefCOCOg840(str(file)))
    assert message.replace(r"\.", ".").split(".*")[0] in text
    assert message.split(".*")[-1] in text


def test_what_is_wrong_with_a_whole_table(tmp_path: Path) -> None:
    double = training_rows(tmp_path / "a.parquet", BOX, BOX, id=["x", "x"])
    assert problem(RefCOCOg840(str(double)), 1).endswith("a.parquet:1: id 'x' occurs already in row 0")
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "b.parquet")
    assert "no column problem, solution, image; there are id, text" in problem(RefCOCOg840(str(tmp_path / "b.parquet")))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 or not")
    assert "c.parquet: cannot be read as a table" in problem(RefCOCOg840(str(tmp_path / "c.parquet")))
    assert "there is no such file" in problem(RefCOCOg840(str(tmp_path / "none.parquet")))
    scores = tmp_path / "scores.json"
    scores.write_text("[]")
    ok = training_rows(tmp_path / "d.parquet", *[BOX] * 7)
    message = problem(RefCOCOg840(str(ok), difficulty_file=str(scores)))
    assert "no difficulty for 7 of 7 ids: 'r0', 'r1', 'r2', 'r3', 'r4', …" in message


def test_visionreasoner_rows_with_several_and_no_objects(tmp_path: Path) -> None:
    one = {"bbox_2d": [84, 84, 420, 210], "point_2d": [100, 100]}
    file = training_rows(tmp_path / "a.parquet", json.dumps([one, one]), "[]", "[{}]")
    source = opened(VisionReasonerRows(str(file)))
    assert [len(check_sample(source[i]).targets) for i in range(2)] == [2, 0]
    assert source[0].mask is None
    assert source[1].mask is not None
    assert "a.parquet:2: solution, object 1: bbox_2d" in problem(source, 2)


def reasonseg_rows(path: Path, **changes: list[Any]) -> Path:
    mask = np.zeros((40, 80), dtype=bool)
    mask[10:20, 30:50] = True
    columns: dict[str, list[Any]] = {
        "image": [{"bytes": photo(), "path": None}],
        "text": ["the thing to sit on"],
        "mask": [mask.tolist()],
        "image_id": ["img"],
        "ann_id": ["3"],
        "img_height": [40],
        "img_width": [80],
    }
    pq.write_table(pa.table(columns | changes), path)
    return path


def test_reasonseg_parquet(tmp_path: Path) -> None:
    sample = checked(ReasonSegParquet(str(reasonseg_rows(tmp_path / "test.parquet"))))[0]
    assert (sample.id, sample.question, boxes(sample)) == ("img#3", "the thing to sit on", [(30.0, 10.0, 49.0, 19.0)])
    wrong = reasonseg_rows(tmp_path / "a.parquet", mask=[[[True] * 40] * 80])
    expected = "a.parquet:0: sizes differ: mask 80 × 40; image 40 × 80; img_height, img_width 40 × 80"
    assert problem(ReasonSegParquet(str(wrong))).endswith(expected)
    ragged = reasonseg_rows(tmp_path / "b.parquet", mask=[[[True], [True, False]]])
    assert "mask is not a list of equally long lists" in problem(ReasonSegParquet(str(ragged)))


def test_several_texts_of_a_row_ask_for_one_object(tmp_path: Path) -> None:
    one = pq.read_table(reasonseg_rows(tmp_path / "one.parquet")).to_pylist()[0]
    rows = [one | {"text": text, "ann_id": ann} for text, ann in (("a", "3"), ("b", "4"), ("c", "3"), ("a", "3"))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    scores = tmp_path / "scores.json"
    difficulties = {"img": 2.0, "img#3": 5.0, "img#3#1": 7.0}
    scores.write_text(json.dumps([{"image_id": n, "difficulty_score_model": d} for n, d in difficulties.items()]))
    source = opened(ReasonSegParquet(str(tmp_path / "rows.parquet"), difficulty_file=str(scores)))
    found = [source[index] for index in range(3)]
    assert [(s.id, s.object_id) for s in found] == [("img#3#0", "img#3"), ("img#4", "img#4"), ("img#3#1", "img#3")]
    assert [s.difficulty for s in found] == [5.0, 2.0, 7.0]  # its own, else its object's, else its image's
    assert problem(source, 3).endswith("rows.parquet:3: id 'img#3#0' occurs already in row 0")


def test_reasonseg_diff_maps_its_fields(tmp_path: Path) -> None:
    rows = reasonseg_rows(tmp_path / "test.parquet")
    notes = tmp_path / "notes.jsonl"
    rating = {"scene": 4, "seg": 6, "language": 2}
    notes.write_text(json.dumps({"name": "img", "rating": rating, "cot": "a couch.", "cot_long": "I see. A couch."}))
    fields = AnnotationFields(
        id="name",
        difficulty="",
        difficulty_parts={part: f"rating.{part}" for part in rating},
        reasoning={"short": "cot", "long": "cot_long"},
    )
    sample = checked(ReasonSegDiff(ReasonSegParquet(str(rows)), str(notes), fields))[0]
    assert (sample.difficulty, dict(sample.reasoning)) == (4.0, {"short": "a couch.", "long": "I see. A couch."})
    assert sample.meta["difficulty_parts"] == {"scene": 4.0, "seg": 6.0, "language": 2.0}
    assert "item 0: no field 'image_id'; there are" in problem(ReasonSegDiff(ReasonSegParquet(str(rows)), str(notes)))
    notes.write_text("")
    assert "no annotation for 1 of 1 ids: 'img#3'" in problem(
        ReasonSegDiff(ReasonSegParquet(str(rows)), str(notes), fields)
    )


# --- COCO and its referring expressions ----------------------------------------------------------------------------


def instances(folder: Path, *segmentations: Any, **changes: Any) -> str:
    """Two images; the annotations lie on the first."""
    for name in ("one.jpg", "two.jpg"):
        Image.new("RGB", (80, 40), (90, 20, 200)).save(folder / name)
    data = {
        "images": [
            {"id": i, "file_name": name, "height": 40, "width": 80, "license": 4}
            for i, name in enumerate(("one.jpg", "two.jpg"))
        ],
        "annotations": [
            {"id": i, "image_id": 0, "category_id": 18, "iscrowd": 0, "segmentation": value, "caption": f"dog {i}"}
            for i, value in enumerate(segmentations)
        ],
        "categories": [{"id": 18, "name": "dog"}],
        "licenses": [{"id": 4, "name": "CC BY 2.0"}],
    }
    (folder / "instances.json").write_text(json.dumps(data | changes))
    return str(folder / "instances.json")


def test_coco_by_category_joins_and_by_object_does_not(tmp_path: Path) -> None:
    file = instances(tmp_path, [LEFT], [RIGHT])
    together = checked(COCO(file, str(tmp_path)))
    assert [(s.id, s.question, boxes(s)) for s in together] == [
        ("0#18", "dog", [(10.0, 10.0, 28.0, 28.0), (40.0, 10.0, 58.0, 28.0)])
    ]
    assert together[0].meta["licence"] == "CC BY 2.0"
    apart = checked(COCO(file, str(tmp_path), group="object"))
    assert [(s.id, s.question, len(s.targets)) for s in apart] == [("0", "dog", 1), ("1", "dog", 1)]
    captions = checked(COCO(file, str(tmp_path), query="caption"))
    assert [s.question for s in captions] == ["dog 0", "dog 1"]


def test_coco_masks_in_every_encoding(tmp_path: Path) -> None:
    mask = np.zeros((40, 80), dtype=bool)
    mask[10:29, 10:29] = True
    text = encode_rle(mask)
    runs = np.diff(np.flatnonzero(np.diff(np.r_[2, mask.ravel(order="F"), 2]))).tolist()
    file = instances(tmp_path, [LEFT], text, {"size": [40, 80], "counts": runs}, [LEFT, LEFT])
    masks = [s.mask for s in checked(COCO(file, str(tmp_path), group="object"))]
    assert all((one == mask).all() for one in masks if one is not None)
    from pixelthink.data.sources.coco import coco_mask

    assert (coco_mask({"size": [40, 80], "counts": text["counts"].encode()}, 40, 80) == mask).all()
    beyond = coco_mask([[-50, -50, 200, -50, 200, 200, -50, 200]], 40, 80)
    assert beyond.all()


def test_coco_crowds_are_ignored(tmp_path: Path) -> None:
    file = Path(instances(tmp_path, [LEFT], [RIGHT]))
    data = json.loads(file.read_text())
    data["annotations"][1]["iscrowd"] = 1
    file.write_text(json.dumps(data))
    for group in ("query", "object"):
        sample = checked(COCO(str(file), str(tmp_path), group=group))[0]  # type: ignore[arg-type]
        assert len(sample.targets) == 1
        assert sample.ignore is not None
        assert sample.ignore.sum() == 19 * 19


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "polygon 0 needs 3 points, got 2"),
        ([LEFT, [1, 2, 3, 4, 5]], "polygon 1 is not a list of x, y"),
        ([[1, 2, 3, 4, 5, None]], "no finite number"),
        ([[0, 0, 1e30, 0, 5, 5]], "beyond"),
        ([[500, 500, 510, 500, 510, 510]], "covers no pixel"),
        ([[5, 5, 5, 5, 5, 5]], "covers no pixel"),
        ([], "list of polygons or RLE"),
        ({"size": [4, 4], "counts": [16]}, "the mask is 4 × 4, the image 40 × 80"),
        ({"size": [40, 80], "counts": "\x7f"}, "characters"),
    ],
)
def test_bad_segmentations_name_their_annotation(tmp_path: Path, segmentation: Any, message: str) -> None:
    text = problem(COCO(instances(tmp_path, segmentation), str(tmp_path)))
    assert "instances.json: annotation 0: " in text
    assert message in text


def reference(ref_id: int, ann_id: Any, *sentences: str, split: str = "val") -> dict[str, Any]:
    listed = [{"sent_id": 10 * ref_id + i, "sent": s, "raw": s, "tokens": s.split()} for i, s in enumerate(sentences)]
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": 0,
        "category_id": 18,
        "split": split,
        "sentences": listed,
        "sent_ids": [s["sent_id"] for s in listed],
        "file_name": f"one_{ref_id}.jpg",
    }


def test_refcoco_counts_by_expression_or_object(tmp_path: Path) -> None:
    instances(tmp_path, [LEFT], [RIGHT])
    references = [reference(5, 1, "right dog", "dog on the right"), reference(6, 0, "left", split="train")]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=0))
    sentences = checked(RefCOCO(str(tmp_path), str(tmp_path)))
    assert [(s.id, s.question) for s in sentences] == [("5#0", "right dog"), ("5#1", "dog on the right")]
    assert boxes(sentences[0]) == [(40.0, 10.0, 58.0, 28.0)]
    assert [s.id for s in checked(RefCOCO(str(tmp_path), str(tmp_path), count="object"))] == ["5"]
    assert "no reference of split 'testA'; there are train, val" in problem(
        RefCOCO(str(tmp_path), str(tmp_path), split="testA")
    )
    (tmp_path / "refs(google).p").write_bytes(pickle.dumps(references))
    assert "found refs(google).p, refs(unc).p; set split_by" in problem(RefCOCO(str(tmp_path), str(tmp_path)))
    assert len(checked(RefCOCO(str(tmp_path), str(tmp_path), split_by="google"))) == 2


def test_sentences_about_the_same_annotations_ask_for_one_object(tmp_path: Path) -> None:
    instances(tmp_path, [LEFT], [RIGHT])
    references = [reference(5, 1, "right dog", "dog on the right"), reference(6, 1, "the other"), reference(7, 0, "a")]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(references))
    samples = checked(RefCOCO(str(tmp_path), str(tmp_path)))
    assert [s.object_id for s in samples] == ["0#1", "0#1", "0#1", "0#0"]
    several = [reference(1, [1, 0], "both"), reference(2, [0, 1], "two"), reference(4, 1, "right")]
    nothing = [reference(5, -1, "cat", "the cat"), reference(6, [-1], "zebra")]  # two things that are not there
    (tmp_path / "grefs(unc).json").write_text(json.dumps(several + nothing))
    found = [s.object_id for s in checked(GRefCOCO(str(tmp_path), str(tmp_path)))]
    assert found == ["0#0+1", "0#0+1", "0#1", "0#none#5", "0#none#5", "0#none#6"]


def test_a_missing_image_leaves_its_object_known(tmp_path: Path) -> None:
    instances(tmp_path, [LEFT], [RIGHT])
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([reference(5, 1, "right dog", "dog on the right")]))
    corners = [[1, 1], [20, 1], [20, 20]]
    annotation = {"text": ["a", "b"], "is_sentence": False, "shapes": [{"label": "target", "points": corners}]}
    (tmp_path / "texts").mkdir()
    Image.new("RGB", (80, 40)).save(tmp_path / "texts/x.jpg")
    (tmp_path / "texts/x.json").write_text(json.dumps(annotation))
    parts = {"r": RefCOCO(str(tmp_path), str(tmp_path)), "t": ReasonSeg(str(tmp_path / "texts"), texts="all")}
    mixed = opened(Mixture({"m": Mixture({**parts}), "s": ShapeScenes(size=2)}, size=12))
    seen = [mixed[index] for index in range(12)]
    for name in ("one.jpg", "texts/x.jpg"):
        (tmp_path / name).unlink()
    missing = [EvaluationDataset(mixed)[index] for index in range(12)]
    assert [s.object_id for s in missing] == [s.object_id for s in seen]
    assert {s.object_id for s in missing if s.missing} == {"m/r/0#1", "m/t/x"}
    assert {s.id: s.object_id for s in seen}["s/shapes-train-0-1~2"] == "s/shapes-train-0-1"  # asked a second time


class Strangers(ImageSource):
    """As short as a source can be: two questions about one object of an image that is nowhere."""

    def __len__(self) -> int:
        return 2

    def read(self, index: int, open_image: ImageOpener) -> Sample:
        return Sample("xy"[index], open_image("/nowhere.jpg"), f"question {index}", object_id="o")


def test_a_source_that_says_nothing_of_missing_images_keeps_names_and_objects() -> None:
    """It has neither `ids` nor anything else that does without images."""
    missing = MissingImage("image_missing", "/nowhere.jpg: there is no such image")
    for source, prefix in ((Strangers(), ""), (Mixture({"m": Strangers()}), "m/")):
        found = [EvaluationDataset(opened(source))[index] for index in range(2)]
        assert {(s.id, s.question) for s in found} == {(f"{prefix}x", "question 0"), (f"{prefix}y", "question 1")}
        assert [(s.object_id, s.missing) for s in found] == [(f"{prefix}o", missing)] * 2


class Refusing(Strangers):
    """Says nothing of an image that it takes for wrong."""

    def read(self, index: int, open_image: ImageOpener) -> Sample:
        if min(open_image("/nowhere.jpg").size) < 2:
            raise ValueError("too small")
        return super().read(index, open_image)


def test_a_source_that_refuses_the_blank_image_loses_the_sample_only() -> None:
    found = EvaluationDataset(opened(Refusing()))[1]
    assert (found.id, found.object_id, found.mask) == ("#1", None, None)
    assert found.missing == MissingImage("image_missing", "/nowhere.jpg: there is no such image")


def test_python_2_pickles_with_either_encoding(tmp_path: Path) -> None:
    instances(tmp_path, [LEFT])
    for text in ("caf\u00e9".encode(), "caf\u00e9".encode("latin-1")):
        written = pickle.dumps([reference(5, 0, "PLACE")], protocol=2).replace(
            b"X\x05\x00\x00\x00PLACE", b"U" + bytes([len(text)]) + text
        )
        (tmp_path / "refs(umd).p").write_bytes(written)
        assert checked(RefCOCO(str(tmp_path), str(tmp_path)))[0].question == "café"


class Bomb:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Path.touch, (self.folder / "executed",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    instances(tmp_path, [LEFT])
    hostile = [
        pickle.dumps([Bomb(tmp_path)]),
        b"cos\nsystem\n(S'touch executed'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        pickle.dumps(np.zeros(2)),
    ]
    for data in hostile:
        (tmp_path / "refs(unc).p").write_bytes(data)
        text = problem(RefCOCO(str(tmp_path), str(tmp_path)))
        assert "refused: the pickle asks for" in text
    for data in (b"", b"\x80\x04garbage", b"(" * 1000, pickle.dumps([1])[:-1]):
        (tmp_path / "refs(unc).p").write_bytes(data)
        assert "not a readable pickle" in problem(RefCOCO(str(tmp_path), str(tmp_path)))
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([{"sets": {1}, "split": "x"}], protocol=2))
    assert "no reference of split 'val'" in problem(RefCOCO(str(tmp_path), str(tmp_path)))
    assert not (tmp_path / "executed").exists()


def test_bad_references_are_errors_of_their_row(tmp_path: Path) -> None:
    instances(tmp_path, [LEFT])
    references = [
        reference(1, 0, "fine"),
        reference(2, 9, "dog"),
        reference(3, 0, " "),
        reference(1, 0, "again"),
        reference(4, None, "dog"),
    ]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(references))
    source = opened(RefCOCO(str(tmp_path), str(tmp_path)))
    check_sample(source[0])
    messages = [problem(source, index) for index in range(1, 5)]
    for message, expected in zip(
        messages, ("there is no annotation 9", "sentence is empty", "occurs twice", "ann_id is no"), strict=True
    ):
        assert expected in message


def test_grefcoco_with_several_and_no_targets(tmp_path: Path) -> None:
    instances(tmp_path, [LEFT], [RIGHT])
    references = [reference(1, [0, 1], "both dogs"), reference(2, [-1], "the cat"), reference(3, -1, "a cat")]
    (tmp_path / "grefs(unc).json").write_text(json.dumps([*references, reference(4, [0, -1], "?")]))
    source = opened(GRefCOCO(str(tmp_path), str(tmp_path)))
    samples = [check_sample(source[i]) for i in range(3)]
    assert [len(s.targets) for s in samples] == [2, 0, 0]
    assert [int(s.mask.sum()) for s in samples if s.mask is not None] == [2 * 19 * 19, 0, 0]
    assert "beside others" in problem(source, 3)


# --- labelme --------------------------------------------------------------------------------------------------------


def labelme(folder: Path, *shapes: dict[str, Any]) -> LabelMe:
    Image.new("RGB", (80, 40)).save(folder / "a.jpg")
    (folder / "a.json").write_text(json.dumps({"version": "5", "imagePath": "a.jpg", "shapes": list(shapes)}))
    return LabelMe(str(folder))


def shape(label: str, points: Any, kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None} | more


def test_labelme_joins_groups_and_labels(tmp_path: Path) -> None:
    pairs = [[[1, 1], [9, 1], [9, 9]], [[11, 1], [19, 1], [19, 9]], [[21, 1], [29, 1], [29, 9]]]
    shapes = [shape("dog", pairs[0], group_id=0), shape("dog", pairs[1], group_id=0), shape("dog", pairs[2])]
    source = labelme(tmp_path, *shapes, shape("cat", [[40, 10], [50, 20]], "rectangle"))
    found = checked(source)
    assert [(s.question, boxes(s)) for s in found] == [
        ("dog", [(1.0, 1.0, 19.0, 9.0), (21.0, 1.0, 29.0, 9.0)]),
        ("cat", [(40.0, 10.0, 50.0, 20.0)]),
    ]
    assert [s.question for s in checked(LabelMe(str(tmp_path), group="object"))] == ["dog", "dog", "cat"]


def test_labelme_circles_and_masks(tmp_path: Path) -> None:
    import base64

    buffer = io.BytesIO()
    Image.fromarray(np.array([[1, 1, 0]], dtype=bool)).save(buffer, format="PNG")
    png = base64.b64encode(buffer.getvalue()).decode()
    shapes = [shape("ball", [[20, 20], [20, 25]], "circle"), shape("m", [[78, 5], [80, 5]], "mask", mask=png)]
    ball, pasted = checked(labelme(tmp_path, *shapes))
    assert boxes(ball) == [(15.0, 15.0, 25.0, 25.0)]
    assert boxes(pasted) == [(78.0, 5.0, 79.0, 5.0)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (shape("a", [[1, 1], [2, 2]], "line"), r"shape 0 (a): a line has no area"),
        (shape("a", [[1, 1], [2, 2]]), "shape 0 (a): a polygon needs 3 or more points, got 2"),
        (shape("a", "x"), 'shape 0 (a): "points" must be'),
        (shape("a", [[100, 100], [110, 100], [110, 110]]), "shape 0 covers no pixel"),
        (shape("a", [[0, 0], [1, float("nan")], [3, 3]]), "not finite"),
        (shape("a", [[0, 0], [1, 1]], "mask", mask="?"), "not a readable image"),
        ({"points": []}, "shape 0 has no label"),
    ],
)
def test_bad_shapes_name_the_file(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    text = problem(labelme(tmp_path, bad))
    assert "a.json: " in text
    assert message in text


# --- the photos in three formats ------------------------------------------------------------------------------------


def outline(file: Path, label: str) -> np.ndarray:
    """Pixels within one pixel of the outline of a label's polygons, bool (H, W)."""
    import cv2

    data = json.loads(file.read_text())
    canvas = np.zeros((data["imageHeight"], data["imageWidth"]), dtype=np.uint8)
    for item in data["shapes"]:
        if item["label"] == label:
            cv2.polylines(canvas, [np.array(item["points"]).astype(np.int32)], True, 1, 1)
    return cv2.dilate(canvas, np.ones((3, 3), dtype=np.uint8)).astype(bool)


@needs_photos
@pytest.mark.parametrize(("name", "label"), [("2011_000003", "bottle"), ("2011_000006", "sofa")])
def test_the_three_formats_of_a_photo_agree_but_for_the_outline(name: str, label: str) -> None:
    sources: list[SampleSource] = [LabelMe(str(PHOTOS)), COCO(str(PHOTOS / "instances.json"), str(PHOTOS))]
    masks = {}
    for source in sources:
        samples = checked(source)
        wanted = [s for s in samples if s.question == label and Path(str(s.meta["file"])).stem == name]
        masks[type(source).__name__] = wanted[0].mask
    reasonseg = next(s for s in checked(ReasonSeg(str(PHOTOS))) if s.id == name)
    masks["ReasonSeg"] = reasonseg.mask
    edge = outline(PHOTOS / f"{name}.labelme.json", label)
    ignored = reasonseg.ignore
    for one in masks.values():
        assert one is not None
        assert one.any()
        assert ignored is not None
        differing = (one != masks["LabelMe"]) & ~ignored
        assert not (differing & ~edge).any()


# --- mixtures -------------------------------------------------------------------------------------------------------


def test_a_mixture_keeps_its_shares_everywhere_and_repeats_late() -> None:
    sources: dict[str, SampleSource] = {"a": ShapeScenes(size=6, seed=1), "b": ShapeScenes(size=20, seed=2)}
    mixture = Mixture(sources, {"a": 1, "b": 3}, size=40, seed=5)
    ids = [s.id for s in checked(mixture)]
    assert len(set(ids)) == 40
    assert [name.count("~") for name in ids if name.startswith("a/")] == [0] * 6 + [1] * 4
    for end in range(1, 41):
        assert abs(sum(name.startswith("a/") for name in ids[:end]) - end / 4) <= 1
    again = Mixture(dict(sources), {"a": 1, "b": 3}, size=40, seed=5)
    again.setup()
    assert [again[i].id for i in reversed(range(40))] == ids[::-1]
    other = Mixture(dict(sources), {"a": 1, "b": 3}, size=40, seed=6)
    other.setup()
    assert list(other.ids()) != ids


def test_a_mixture_without_weights_holds_every_sample_once() -> None:
    mixture = Mixture({"a": ShapeScenes(size=3), "b": ShapeScenes(size=5)})
    assert sorted(s.id for s in checked(mixture)) == sorted(
        [f"a/shapes-train-0-{i}" for i in range(3)] + [f"b/shapes-train-0-{i}" for i in range(5)]
    )


@pytest.mark.parametrize("weights", [{"a": 1}, {"a": 1, "b": 0}, {"a": 1, "b": float("nan")}])
def test_bad_weights(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        Mixture({"a": ShapeScenes(size=3), "b": ShapeScenes(size=5)}, weights)
