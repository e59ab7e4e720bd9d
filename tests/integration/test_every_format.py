"""Training and testing through the command line on every format, all of them in one mixture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pixelthink.cli import main as cli
from pixelthink.data.prepare import prepare
from pixelthink.data.sources.shape_scenes import ShapeScenes
from tests import published
from tests.photos import PHOTOS

TINY = {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 32, "vision_hidden_size": 32}


def source(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": arguments}


def measurable(folder: Path) -> dict[str, dict[str, Any]]:
    """A source of every format that publishes masks."""
    prepare(ShapeScenes(size=2), folder / "checked")
    reasonseg = source("ReasonSeg", root=published.reasonseg_folder(folder / "reasonseg"))
    refcoco, grefcoco = published.refcoco(folder / "refcoco"), published.grefcoco(folder / "grefcoco")
    found = {
        "checked": source("Checked", path=str(folder / "checked")),
        "reasonseg": reasonseg,
        "parquet": source("ReasonSegParquet", path=published.reasonseg_rows(folder / "parquet")),
        "diff": source(
            "ReasonSegDiff", samples=reasonseg, annotations=published.reasonseg_diff_notes(folder / "notes.json")
        ),
        "refcoco": source("RefCOCO", root=refcoco, images=refcoco),
        "grefcoco": source("GRefCOCO", root=grefcoco, images=grefcoco),
        "coco": source("COCO", instances=f"{refcoco}/instances.json", images=refcoco),
    }
    if PHOTOS.is_dir():
        found["photos_labelme"] = source("LabelMe", root=str(PHOTOS))
        found["photos_coco"] = source("COCO", instances=str(PHOTOS / "instances.json"), images=str(PHOTOS))
        found["photos_reasonseg"] = source("ReasonSeg", root=str(PHOTOS), texts="all")
    return found


def trainable(folder: Path) -> dict[str, dict[str, Any]]:
    """A source of every format that publishes targets only."""
    return {
        "rows": source("RefCOCOg840", path=published.training_rows(folder / "rows", published.BOX_840)),
        "objects": source("VisionReasonerRows", path=published.visionreasoner_rows(folder / "objects")),
    }


def test_a_policy_trains_and_is_tested_on_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    tested = measurable(tmp_path)
    trained = tested | trainable(tmp_path)
    assert len(trained) % 3 == 0  # else the incomplete last batch would be left out
    sampling = {"max_new_tokens": 4}
    run = {
        "model": {
            "class_path": "GRPOModule",
            "init_args": {
                "policy": source("FreshTinyQwen25VL", **TINY),
                "reward": "VisionReasonerReward",
                "sampling": {"group_size": 2, **sampling},
                "evaluation": {"sampling": {"group_size": 1, "temperature": 0.0, **sampling}},
            },
        },
        "data": {
            "train": source("Mixture", sources=trained, weights=dict.fromkeys(trained, 1.0), size=len(trained)),
            "test": source("Mixture", sources=tested, weights=dict.fromkeys(tested, 1.0), size=len(tested)),
            "prompt": "VisionReasonerPrompt",
            "image_size": [112, 112],
            "batch_size": len(trained) // 3,
            "eval_batch_size": 4,
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False},
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    seen: list[str] = []
    watch(monkeypatch, seen)
    cli.main(["fit", "--config=run.json"])
    assert {name.split("/")[0] for name in seen} == set(trained)
    seen.clear()
    cli.main(["test", "--config=run.json"])
    assert {name.split("/")[0] for name in seen} == set(tested)


def watch(monkeypatch: pytest.MonkeyPatch, seen: list[str]) -> None:
    """Notes the id of every sample that becomes a prompt."""
    from pixelthink.data.collate import Collate

    original = Collate.prompt

    def prompt(self: Collate, sample: Any) -> Any:
        seen.append(sample.id)
        return original(self, sample)

    monkeypatch.setattr(Collate, "prompt", prompt)
