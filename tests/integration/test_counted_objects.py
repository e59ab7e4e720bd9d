"""Counting per object from the command line: RefCOCO and ReasonSeg, a vanished image, a kill, and two processes."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelthink.cli.main import main
from pixelthink.data.images import encode_png
from tests.integration.test_evaluation import as_program, command, results
from tests.support import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import compare_runs
import score_masks

pytestmark = pytest.mark.slow

SIDE = 20
"""The targets are squares of 20 × 20 pixels, at 10, 10 and, in the first image, another one at 60, 60."""
KILL = "{class_path: tests.evaluation_parts.KillRun, init_args: {before_batch: 1}}, "


def answer(x: int, width: int) -> str:
    """An answer that covers `width` columns from `x` on, on the rows of the square there."""
    box = [x, x, x + width - 1, x + SIDE - 1]
    return json.dumps({"bbox": box, "points_1": box[:2], "points_2": box[:2]})


ANSWERS = {
    "1#0": answer(10, 20),  # IoU 1
    "1#1": answer(10, 10),  # 1/2
    "1#2": "I see nothing",  # 0
    "2#0": answer(60, 5),  # the other square of the image, 1/4
    "3#0": answer(10, 20),  # a second image, which is there for one of its sentences only
    "3#1": "the image is gone by then",
}


def square(number: int, image: int, corner: int) -> dict[str, Any]:
    """A COCO annotation."""
    polygon = [corner, corner, corner + SIDE, corner, corner + SIDE, corner + SIDE, corner, corner + SIDE]
    return {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "segmentation": [polygon]}


@pytest.fixture
def refcoco(tmp_path: Path) -> Path:
    """RefCOCO: three sentences about one square, one about another, two about one in a second image."""
    folder = tmp_path / "refcoco"
    folder.mkdir()
    for name in ("one.png", "two.png"):
        Image.new("RGB", (112, 112), "white").save(folder / name)
    images = [{"id": n, "file_name": name, "height": 112, "width": 112} for n, name in ((1, "one.png"), (2, "two.png"))]
    annotations = [square(7, 1, 10), square(8, 1, 60), square(9, 2, 10)]
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (folder / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
    references = [
        {
            "ref_id": ref,
            "ann_id": ann,
            "image_id": image,
            "split": "test",
            "sentences": [{"sent": s} for s in sentences],
        }
        for ref, ann, image, sentences in ((1, 7, 1, "abc"), (2, 8, 1, "d"), (3, 9, 2, "ef"))
    ]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(references))
    return folder


def options(
    folder: Path, data: Path, *more: str, callbacks: str = "", answers: dict[str, str] | None = None
) -> list[str]:
    """An evaluation of scripted answers whose masks are their boxes, counted per object."""
    script = folder / "script.json"
    script.write_text(json.dumps(answers or ANSWERS), encoding="utf-8")
    return [
        *command(folder, callbacks=callbacks, size=1),
        f"--model.rollout={{class_path: tests.evaluation_parts.ScriptedEngine, init_args: {{script: {script}}}}}",
        "--model.segmenter=tests.evaluation_parts.BoxFiller",
        "--model.evaluation.acceptance=pixelthink",  # the scripted answers have no reasoning
        f"--data.test={{class_path: RefCOCO, init_args: {{root: {data}, images: {data}, split: test}}}}",
        *("--data.eval_batch_size=4", "--data.num_workers=0", "--model.evaluation.count=object", *more),
    ]


def test_refcoco_with_an_image_that_vanishes(tmp_path: Path, refcoco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The area of a polygon's mask is what pycocotools says, so sums are taken from the rows."""
    remove = f"{{class_path: tests.evaluation_parts.RemoveFile, init_args: {{path: {refcoco}/two.png}}}}, "
    main(["test", *options(tmp_path, refcoco, "--data.eval_batch_size=5", callbacks=remove)])
    said = capsys.readouterr().out
    assert "N = 3 objects of 6 expressions" in said
    metrics, rows = results(tmp_path)
    assert [row["object"] for row in rows] == ["1#7", "1#7", "1#7", "1#8", "2#9", "2#9"]
    assert [row["failure"] for row in rows] == [None, None, "no_json", None, None, "image_missing"]
    assert (metrics["count"], metrics["n"], metrics["expressions"]) == ("object", 3, 6)
    ious = [row["iou"] for row in rows]
    assert ious == pytest.approx([1, 1 / 2, 0, 1 / 4, 1, 0])
    assert metrics["giou"] == pytest.approx((sum(ious[:3]) / 3 + ious[3] + sum(ious[4:]) / 2) / 3, abs=1e-12)
    shared, joined = ([row[key] for row in rows] for key in ("intersection", "union"))
    weighed = [sum(values[:3]) / 3 + values[3] + sum(values[4:]) / 2 for values in (shared, joined)]
    assert metrics["ciou"] == pytest.approx(weighed[0] / weighed[1], abs=1e-12)
    assert metrics["failures"] == {"no_json": 1, "image_missing": 1}
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "counted per object: 3 objects of 6 expressions" in page

    arguments = ["--protocol=segzero", f"--input={tmp_path}/out/samples.jsonl"]
    assert score_masks.main([*arguments, "--count=object"]) == 0
    scored = json.loads(capsys.readouterr().out)
    for name in ("n", "expressions", "giou", "ciou", "giou_ci95", "ciou_ci95", "failures"):
        assert scored[name] == metrics[name]  # to the last bit
    assert compare_runs.main([f"{tmp_path}/out", f"{tmp_path}/out", f"--output={tmp_path}/same.json"]) == 0
    same = json.loads((tmp_path / "same.json").read_text(encoding="utf-8"))
    assert (same["count"], same["n"]["all"], same["expressions"]["all"]) == ("object", 3, 6)
    assert same["differences"]["all"]["giou"]["a"] == pytest.approx(metrics["giou"])


def test_two_processes_killed_and_finished_by_one_give_the_numbers_of_one(tmp_path: Path, refcoco: Path) -> None:
    (tmp_path / "one").mkdir()
    main(["test", *options(tmp_path / "one", refcoco)])
    expected = results(tmp_path / "one")
    assert (expected[0]["n"], expected[0]["expressions"]) == (3, 6)
    several = ("--trainer.devices=2", "--trainer.strategy=ddp")
    for name, kill in (("two", ""), ("killed", KILL)):
        folder = tmp_path / name
        folder.mkdir()
        done = as_program("test", *options(folder, refcoco, *several, callbacks=kill))
        if kill:
            assert done.returncode != 0
            assert sorted(path.name for path in (folder / "out").glob("*.jsonl"))[:1] == ["samples.part-0.jsonl"]
            main(["test", *options(folder, refcoco)])
        else:
            assert done.returncode == 0, done.stderr[-2000:]
            assert done.stdout.count("N = 3 objects of 6 expressions") == 1
        assert results(folder) == expected  # to the last bit


def test_the_texts_of_a_reasonseg_image_are_one_object(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    folder.mkdir()
    corners = [[10, 10], [29, 10], [29, 29], [10, 29]]
    for name, texts in (("a", ["what holds tea", "the cup", "white"]), ("b", ["the cup"])):
        Image.new("RGB", (112, 112), "white").save(folder / f"{name}.jpg")
        annotation = {"text": texts, "is_sentence": False, "shapes": [{"label": "target", "points": corners}]}
        (folder / f"{name}.json").write_text(json.dumps(annotation), encoding="utf-8")
    answers = {"a#0": answer(10, 20), "a#1": answer(10, 5), "a#2": answer(10, 10), "b#0": "?"}
    source = f"{{class_path: ReasonSeg, init_args: {{root: {folder}, texts: all}}}}"
    main(["test", *options(tmp_path, folder, f"--data.test={source}", answers=answers)])
    metrics, rows = results(tmp_path)
    assert [row["object"] for row in rows] == ["a", "a", "a", "b"]
    assert (metrics["n"], metrics["expressions"]) == (2, 4)
    assert metrics["giou"] == pytest.approx((1 + 1 / 4 + 1 / 2) / 3 / 2)
    assert metrics["ciou"] == pytest.approx((400 + 100 + 200) / 3 / 800)


def test_rows_of_one_object_with_two_masks_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    masks = [np.arange(112 * 112).reshape(112, 112) < 112 * rows for rows in (10, 20)]
    picture = {"bytes": encode_png(Image.new("RGB", (112, 112), "white")), "path": None}
    rows = [
        {"image": picture, "text": f"text {n}", "mask": mask.tolist(), "image_id": "i", "ann_id": "1"}
        for n, mask in enumerate(masks)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    source = f"{{class_path: ReasonSegParquet, init_args: {{path: {tmp_path}/rows.parquet}}}}"
    arguments = options(tmp_path, tmp_path, f"--data.test={source}", answers={"i#1#0": "?", "i#1#1": "?"})
    with pytest.raises(SystemExit):
        main(["test", *arguments])
    expected = "samples 'i#1#0' and 'i#1#1' ask for the object 'i#1', but have different targets"
    assert capsys.readouterr().err.strip().splitlines()[-1] == f"pixelthink: error: {expected}"
    main(["test", *arguments, "--model.evaluation.count=expression"])  # which asks for no objects
    assert results(tmp_path)[0]["n"] == 2
