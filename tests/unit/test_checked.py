"""The checked format: nothing is lost on the way, every rejection is listed, and an interrupted conversion goes on."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

import pixelthink.data.prepare as preparing
from pixelthink.data.base import SampleSource
from pixelthink.data.checked_format import sample_to_row
from pixelthink.data.loader import EpochSampler, ResumableLoader
from pixelthink.data.prepare import PrepareOptions, prepare
from pixelthink.data.sources.checked import Checked, validate
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.data.sources.single_target import SingleTarget
from pixelthink.geometry import target_from_mask
from pixelthink.types import Sample
from tests.photos import PHOTOS, needs_photos
from tools import check_data, prepare_data

pq = pytest.importorskip("pyarrow.parquet")


def sample(name: str, **changes: Any) -> Sample:
    """An image of 12 × 10 pixels with a square of 4 × 4."""
    mask = np.zeros((10, 12), dtype=bool)
    mask[2:6, 3:7] = True
    fields: dict[str, Any] = {
        "mask": mask,
        "ignore": ~mask,
        "targets": (target_from_mask(mask),),
        "difficulty": 4.5,
        "reasoning": {"short": "it is there.", "long": "I look. It is there."},
        "meta": {"difficulty_parts": {"scene": 4.0, "seg": 5.0}, "licence": "CC0", "is_sentence": True},
    }
    return Sample(name, Image.new("RGB", (12, 10), (200, 10, 90)), "the square", **(fields | changes))


class Listed(SampleSource):
    """Samples, or errors, as listed."""

    def __init__(self, *samples: Sample | Exception) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        item = self.samples[index]
        if isinstance(item, Exception):
            raise item
        return item


def opened(path: Path) -> Checked:
    source = Checked(str(path))
    source.setup()
    return source


def assert_equal(one: Sample, other: Sample) -> None:
    """Whether two samples are the same, but for what the format adds to their meta."""
    assert (one.id, one.question, one.targets, one.difficulty) == (
        other.id,
        other.question,
        other.targets,
        other.difficulty,
    )
    assert dict(one.reasoning) == dict(other.reasoning)
    assert one.object_id == other.object_id
    assert (np.asarray(one.image) == np.asarray(other.image)).all()
    for a, b in ((one.mask, other.mask), (one.ignore, other.ignore)):
        assert (a is None) == (b is None)
        assert a is None or b is None or (a == b).all()
    assert {key: value for key, value in other.meta.items() if key != "source"} == dict(one.meta)


def test_every_field_survives(tmp_path: Path) -> None:
    empty = np.zeros((10, 12), dtype=bool)
    one = target_from_mask(~empty)
    samples = (
        sample("all"),
        sample("bare", mask=None, ignore=None, targets=(), difficulty=None, reasoning={}, meta={}),
        sample("no target", mask=empty, targets=(), ignore=None),
        sample("several", targets=(one, sample("x").targets[0])),
        sample("of an object", object_id="image 3#7"),
        sample("ünïcode", reasoning={"short": "ja: ‘da’"}),
    )
    summary = prepare(Listed(*samples), tmp_path, PrepareOptions(rows_per_part=2))
    made = opened(tmp_path)
    assert list(made.ids()) == [s.id for s in samples]
    for index, original in enumerate(samples):
        assert_equal(original, made[index])
    assert (summary["samples"], summary["without_target"], summary["with_several_targets"]) == (6, 1, 1)
    assert (summary["without_mask"], summary["without_difficulty"], summary["levels"]) == (1, 1, {"medium": 5})
    assert summary["mask_area"]["max"] == pytest.approx(16 / 120)
    assert list(validate(str(tmp_path))) == []


def test_generated_scenes_survive_and_can_be_read_in_any_order_by_anyone(tmp_path: Path) -> None:
    source = ShapeScenes(size=40)
    prepare(source, tmp_path, PrepareOptions(rows_per_part=25, workers=2))
    made = pickle.loads(pickle.dumps(opened(tmp_path)))
    for index in (39, 0, 17, 24, 25, 1):
        assert_equal(source[index], made[index])
    assert len(made) == 40
    with pytest.raises(IndexError):
        made[40]


def test_an_image_file_keeps_its_bytes_or_its_path(tmp_path: Path) -> None:
    Image.new("RGB", (12, 10), (200, 10, 90)).save(tmp_path / "a.png", compress_level=0)
    with_file = sample("a", meta={"file": str(tmp_path / "a.png")})
    assert sample_to_row(with_file, "s")["image"]["bytes"] == (tmp_path / "a.png").read_bytes()
    row = sample_to_row(with_file, "s", "path")
    assert row["image"] == {"bytes": None, "path": str((tmp_path / "a.png").resolve())}
    other = replace(with_file, image=Image.new("RGB", (12, 10)))
    assert sample_to_row(other, "s")["image"]["bytes"] != (tmp_path / "a.png").read_bytes()
    with pytest.raises(ValueError, match="sample 'a': its image is in no file"):
        sample_to_row(other, "s", "path")


def test_rejected_rows_are_listed_with_their_reasons(tmp_path: Path) -> None:
    source = Listed(
        sample("a"),
        ValueError("x.json: broken\nbadly"),
        sample("a"),
        replace(sample("b"), question=" "),
        sample("c", difficulty=11),
        sample("d"),
        sample("d"),
        sample("e", object_id=7),
    )
    summary = prepare(source, tmp_path, PrepareOptions(rows_per_part=3))
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [(row["index"], row["reason"]) for row in rejected] == [
        (1, "x.json: broken badly"),
        (2, "id 'a' occurs already in sample 0"),
        (3, "sample 'b': the question is empty"),
        (4, "sample 'c': difficulty must be a number from 1 to 10, got '11'"),
        (6, "id 'd' occurs already in sample 5"),
        (7, "sample 'e': object_id must be text or None, got int"),
    ]
    assert (summary["samples"], summary["rejected"]) == (2, 6)
    assert opened(tmp_path).ids() == ["a", "d"]
    assert opened(tmp_path)[1].id == "d"


def test_an_interrupted_conversion_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    class Dying(ShapeScenes):
        asked: ClassVar[list[int]] = []
        dies = True

        def __getitem__(self, index: int) -> Sample:
            self.asked.append(index)
            if index == 7 and self.dies:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    options = PrepareOptions(rows_per_part=3, name="s")
    source = Dying(size=10)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "one", options)
    assert not (tmp_path / "one" / "dataset.json").exists()
    Dying.dies, Dying.asked = False, []
    steps: list[int] = []
    prepare(source, tmp_path / "one", options, steps.append)
    assert (Dying.asked, steps) == ([6, 7, 8, 9], [3, 3, 3, 1])
    prepare(ShapeScenes(size=10), tmp_path / "two", options)
    for name in ("part-00000.parquet", "part-00002.parquet", "summary.json", "dataset.json", "rejected.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_another_conversion_is_not_mixed_in(tmp_path: Path) -> None:
    prepare(ShapeScenes(size=4), tmp_path / "a")
    plan = tmp_path / "a/progress/plan.json"
    written = plan.read_text()
    plan.write_text(json.dumps({name: value for name, value in json.loads(written).items() if name != "version"}))
    with pytest.raises(ValueError, match=r"another conversion \(version None, now 2"):  # of before there were objects
        prepare(ShapeScenes(size=4), tmp_path / "a")
    plan.write_text(written)
    with pytest.raises(ValueError, match=r"another conversion \(samples 4, now 5\)"):
        prepare(ShapeScenes(size=5), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="is not empty"):
        prepare(ShapeScenes(size=5), tmp_path / "b")


def test_a_dropped_duplicate_survives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Listed(sample("a"), sample("b"), sample("a"), sample("c"))
    options = PrepareOptions(rows_per_part=2)
    with monkeypatch.context() as patch:
        write, calls = preparing.write_part, iter(range(9))

        def failing(*arguments: Any) -> None:
            if next(calls) == 2:
                raise KeyboardInterrupt
            write(*arguments)

        patch.setattr(preparing, "write_part", failing)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path, options)
    for _ in range(2):
        assert prepare(source, tmp_path, options)["samples"] == 3
        assert opened(tmp_path).ids() == ["a", "b", "c"]


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the first row of the first part."""
    import pyarrow as pa

    part = folder / "part-00000.parquet"
    table = pq.read_table(part)
    rows = table.to_pylist()
    change(rows[0])
    pq.write_table(pa.Table.from_pylist(rows, table.schema), part, row_group_size=16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(query=" "), "the question is empty"),
        (lambda row: row.update(width=13), "part-00000.parquet:0: the image is 12 × 10, the row says 13 × 10"),
        (lambda row: row["target"].update(counts="?"), "part-00000.parquet:0: RLE"),
        (lambda row: row["target"].update(size=[12, 10]), "the mask has shape (12, 10), the image needs (10, 12)"),
        (lambda row: row["image"].update(bytes=b"no"), "image of 'a': not a readable image"),
        (lambda row: row["image"].update(bytes=None), "neither an image nor a path"),
        (lambda row: row["targets"][0].update(box=[0.0, 0.0, 840.0, 840.0]), "is not inside the image"),
        (lambda row: row["targets"][0].update(box=[9.0, 8.0, 11.0, 9.0]), "does not meet the mask"),
        (lambda row: row["targets"][0].update(box=[1.0]), "part-00000.parquet:0: "),
        (lambda row: row.update(id="b"), "row 1: id 'b' occurs already in row 0"),
        (lambda row: row.update(meta="{"), "part-00000.parquet:0: "),
    ],
)
def test_the_validator_names_what_is_wrong(tmp_path: Path, change: Any, message: str) -> None:
    prepare(Listed(sample("a"), sample("b")), tmp_path)
    rewrite(tmp_path, change)
    found = list(validate(str(tmp_path)))
    assert len(found) == 1
    assert message in found[0]
    assert "\n" not in found[0]


def test_the_validator_names_rows_of_one_object_that_differ(tmp_path: Path) -> None:
    whole = np.ones((10, 12), dtype=bool)
    samples = [sample("a", object_id="o"), sample("b", object_id="o"), sample("c", object_id="o", mask=whole)]
    prepare(Listed(*samples, sample("d", mask=whole)), tmp_path)
    assert list(validate(str(tmp_path))) == [
        "samples 'a' and 'c' ask for the object 'o', but have different targets",
    ]


def test_a_folder_of_version_1_is_read_without_objects(tmp_path: Path) -> None:
    """As prepared before samples had objects: a column and a version less."""
    prepare(Listed(sample("a", object_id="o"), sample("b", object_id="o")), tmp_path)
    part, manifest = tmp_path / "part-00000.parquet", tmp_path / "dataset.json"
    pq.write_table(pq.read_table(part).drop_columns(["object"]), part)
    with pytest.raises(ValueError, match="columns that differ: object"):
        opened(tmp_path)[0]
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 1'))
    made = opened(tmp_path)
    assert_equal(sample("b"), made[1])
    assert [made[index].object_id for index in range(2)] == [None, None]
    assert list(validate(str(tmp_path))) == []


def test_what_is_no_data_set(tmp_path: Path) -> None:
    import pyarrow as pa

    with pytest.raises(ValueError, match=r"dataset\.json: cannot be read"):
        opened(tmp_path)
    prepare(ShapeScenes(size=4), tmp_path / "a")
    manifest = tmp_path / "a" / "dataset.json"
    good = manifest.read_text()
    manifest.write_text(good.replace('"version": 2', '"version": 9'))
    with pytest.raises(ValueError, match="version 9, this program reads versions 1 and 2"):
        opened(tmp_path / "a")
    manifest.write_text(good)
    pq.write_table(pa.table({"id": ["a"] * 4}), tmp_path / "a" / "part-00000.parquet")
    with pytest.raises(ValueError, match=r"part-00000\.parquet:0: .*not a part of the checked format; columns"):
        opened(tmp_path / "a")[0]
    (tmp_path / "a" / "part-00000.parquet").unlink()
    with pytest.raises(ValueError, match=r"part-00000\.parquet: the part is missing"):
        opened(tmp_path / "a")


def test_dataloader_workers_read_what_their_parent_has_open(tmp_path: Path) -> None:
    prepare(ShapeScenes(size=12), tmp_path, PrepareOptions(rows_per_part=5))
    made = opened(tmp_path)
    assert made[7].id == "shapes-train-0-7"
    loader = ResumableLoader(made, EpochSampler(12, 4), collate_fn=lambda batch: [s.id for s in batch], num_workers=2)
    assert [name for batch in loader for name in batch] == list(made.ids())


def test_difficulties_of_a_file_take_the_place_of_the_stored_ones(tmp_path: Path) -> None:
    prepare(ShapeScenes(size=2), tmp_path / "a")
    file = tmp_path / "d.json"
    rows = [{"image_id": f"shapes-train-0-{i}", "difficulty_score_model": 7.0 + i} for i in range(2)]
    file.write_text(json.dumps(rows))
    made = Checked(str(tmp_path / "a"), difficulty_file=str(file))
    made.setup()
    assert [made[0].difficulty, made[1].difficulty] == [7.0, 8.0]
    file.write_text(json.dumps(rows[:1]))
    with pytest.raises(ValueError, match="no difficulty for 1 of 2 ids: 'shapes-train-0-1'"):
        Checked(str(tmp_path / "a"), difficulty_file=str(file)).setup()


def test_a_single_target_is_the_whole_mask() -> None:
    mask = np.zeros((10, 12), dtype=bool)
    mask[1, 1] = mask[8, 9] = True
    parts = tuple(target_from_mask(np.where(np.arange(10)[:, None] == y, mask, False)) for y in (1, 8))
    source = SingleTarget(Listed(sample("a", mask=mask, ignore=None, targets=parts), sample("b", mask=mask & False)))
    assert [target.box_xyxy for target in source[0].targets] == [(1.0, 1.0, 9.0, 8.0)]
    with pytest.raises(ValueError, match="sample 'b' has no target"):
        source[1]


def test_one_part_stays_open(tmp_path: Path) -> None:
    prepare(ShapeScenes(size=30), tmp_path, PrepareOptions(rows_per_part=2))
    made = opened(tmp_path)
    assert [made[i].id for i in range(30)] == list(made.ids())
    assert made._open is not None
    assert made._open[0] == len(made._parts) - 1


@needs_photos
def test_the_tools_convert_photos_and_find_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "checked"
    arguments = ["--source", "ReasonSeg", "--source.root", str(PHOTOS), "--source.texts=all", "--output", str(output)]
    assert prepare_data.main([*arguments, "--licence", "CC BY 2.0", "--contact_sheet", "3"]) == 0
    assert '"samples": 3' in capsys.readouterr().out
    made = opened(output)
    assert [s.id for s in (made[0], made[1], made[2])] == ["2011_000003#0", "2011_000006#0", "2011_000006#1"]
    assert (made[0].meta["licence"], made[0].meta["source"]) == ("CC BY 2.0", "ReasonSeg")
    stored = pq.read_table(output / "part-00000.parquet")["image"].to_pylist()[0]["bytes"]
    assert stored == (PHOTOS / "2011_000003.jpg").read_bytes()
    with Image.open(output / "contact_sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3).astype(int)
    for color in ((255, 225, 0), (230, 30, 30)):  # boxes and points
        assert (np.abs(pixels - color).sum(axis=1) < 10).sum() > 50
    assert check_data.main([str(output)]) == 0


def test_the_tool_complains_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--source", "ReasonSeg", "--source.root", str(tmp_path / "no")], "there is no such folder"),
        (["--source", "Nonsense"], "Nonsense"),
        (["--source", "ShapeScenes", "--workers=0"], "at least 1"),
    ):
        assert prepare_data.main([*arguments, "--output", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1
        assert message in error[0]
