"""Small data sets in exactly the layouts in which the field publishes them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixelthink.data.images import encode_png

SIZE = (80, 40)
LEFT, RIGHT = [10, 10, 29, 10, 29, 29, 10, 29], [40.0, 10.0, 59.0, 10.0, 59.0, 29.0, 40.0, 29.0]
LEFT_BOX = (10, 10, 29, 29)
BOX_840 = "<box>(84,84),(420,210)</box><points>(100,100),(200,150)</points>"


def left_mask() -> np.ndarray:
    """The left object, bool (40, 80)."""
    mask = np.zeros(SIZE[::-1], dtype=bool)
    mask[10:30, 10:30] = True
    return mask


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows as a Parquet file; returns its path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def image_cell() -> dict[str, Any]:
    """An image as hub tables hold it."""
    return {"bytes": encode_png(Image.new("RGB", SIZE, (90, 20, 200))), "path": "a.png"}


def training_rows(folder: Path, *solutions: str) -> str:
    """`refCOCOg_9k_840` or VisionReasoner rows."""
    rows = [
        {"id": f"r{i}", "problem": "the left box", "solution": text, "image": image_cell()}
        for i, text in enumerate(solutions)
    ]
    return write_parquet(folder / "data" / "train-00000-of-00001.parquet", rows)


def visionreasoner_rows(folder: Path) -> str:
    """Two objects, then none."""
    two = [{"bbox_2d": [84, 84, 420, 210], "point_2d": [100, 100]}, {"bbox_2d": [1, 2, 30, 40], "point_2d": [9, 9]}]
    return training_rows(folder, json.dumps(two), "[]")


def reasonseg_rows(folder: Path) -> str:
    """ReasonSeg as Seg-Zero's evaluation reads it."""
    row = {"image": image_cell(), "text": "what stands on the left?", "mask": left_mask().tolist()}
    named = {"image_id": "img", "ann_id": "1", "img_height": 40, "img_width": 80}
    return write_parquet(folder / "test-00000-of-00001.parquet", [row | named])


def reasonseg_folder(folder: Path) -> str:
    """`X.jpg` + `X.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (90, 20, 200)).save(folder / "one.jpg")
    shapes = [{"label": "target", "points": np.reshape(LEFT, (-1, 2)).tolist()}]
    annotation = {"text": ["what stands on the left?"], "is_sentence": True, "shapes": shapes}
    (folder / "one.json").write_text(json.dumps(annotation))
    return str(folder)


def reasonseg_diff_notes(path: Path) -> str:
    """Difficulty and reasoning for `reasonseg_folder`, under made-up but plausible names."""
    notes = {"image_id": "one", "difficulty_score_model": 4.0, "short_reasoning": "left.", "long_reasoning": "I look."}
    path.write_text(json.dumps([notes]))
    return str(path)


def instances(folder: Path) -> str:
    """Two objects on the first of two images."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("one.jpg", "two.jpg")
    for name in names:
        Image.new("RGB", SIZE, (90, 20, 200)).save(folder / name)
    data = {
        "images": [{"id": i, "file_name": name, "height": 40, "width": 80} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": 0, "category_id": 18, "iscrowd": 0, "segmentation": [polygon]}
            for i, polygon in enumerate((LEFT, RIGHT))
        ],
        "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}],
    }
    (folder / "instances.json").write_text(json.dumps(data))
    return str(folder)


def reference(ref_id: int, ann_id: Any, *sentences: str) -> dict[str, Any]:
    """One reference of split "val"."""
    listed = [{"sent_id": 10 * ref_id + i, "sent": s, "raw": s, "tokens": s.split()} for i, s in enumerate(sentences)]
    fixed = {"image_id": 0, "category_id": 18, "split": "val", "file_name": f"one_{ref_id}.jpg"}
    ids = {"ref_id": ref_id, "ann_id": ann_id, "sent_ids": [s["sent_id"] for s in listed]}
    return {**fixed, **ids, "sentences": listed}


def refcoco(folder: Path) -> str:
    """`refs(unc).p` as Python 2 pickled it, beside `instances.json`."""
    instances(folder)
    references = [reference(5, 1, "right dog", "dog on the right")]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=0))
    return str(folder)


def grefcoco(folder: Path) -> str:
    """`grefs(unc).json`: several targets, and none."""
    instances(folder)
    references = [reference(1, [0, 1], "both dogs"), reference(2, [-1], "the cat")]
    (folder / "grefs(unc).json").write_text(json.dumps(references))
    return str(folder)
