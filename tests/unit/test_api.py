"""The Python API: its examples run, importing it is cheap, and it answers as `predict` and scores as the tool does."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pixelthink
from pixelthink import api
from pixelthink.cli.main import main
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.errors import UserError
from pixelthink.evaluation.config import EvaluationConfig
from pixelthink.geometry import decode_rle
from pixelthink.rollouts.base import SamplingConfig
from tests.support import ROOT, golden_rows


@pytest.fixture(autouse=True)
def _in_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def policy() -> api.Policy:
    return pixelthink.load_policy(str(ROOT / "assets/tiny_policy"), prompt="ShortPrompt", image_size=(112, 112))


def test_the_examples_of_the_docstrings_run() -> None:
    found = doctest.testmod(api)
    assert found.attempted >= 15
    assert found.failed == 0


def test_importing_the_package_loads_neither_torch_nor_lightning() -> None:
    program = (
        "import sys, pixelthink; print(sorted({'torch', 'lightning', 'transformers', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(dir(pixelthink)) == set(pixelthink.__all__)
    with pytest.raises(AttributeError, match="'pixelthink' has no attribute 'asks'; it has ask, evaluate"):
        pixelthink.asks  # noqa: B018


def test_a_reply_is_what_predict_writes(policy: api.Policy, tmp_path: Path) -> None:
    question = "the rightmost shape"
    reply = pixelthink.ask(policy, "assets/shapes.png", question, max_new_tokens=150)
    options = [f"--data.predict.image={ROOT}/assets/shapes.png", f"--data.predict.question={question}"]
    main(["predict", "--config=configs/predict.yaml", *options, f"--trainer.callbacks.path={tmp_path}/out"])
    row = json.loads((tmp_path / "out/predictions.jsonl").read_text(encoding="utf-8"))
    assert (reply.text, reply.reasoning, reply.failure) == (row["text"], row["reasoning"], row["failure"])
    assert reply.reasoning_tokens == row["reasoning_tokens"]
    assert [list(box) for box in reply.boxes] == [target["box"] for target in row["answer"]]
    assert np.array_equal(reply.mask, decode_rle(row["mask"]))
    assert reply.overlay().size == (112, 112)


def test_an_evaluation_is_what_test_writes(policy: api.Policy, tmp_path: Path) -> None:
    sampling = SamplingConfig(group_size=1, temperature=0.0, max_new_tokens=150)
    config = EvaluationConfig(sampling=sampling, model_billions=0.0014)
    source = ShapeScenes(split="test", size=6)
    found = pixelthink.evaluate(policy, source, config=config, batch_size=4, output=tmp_path / "api")
    logger = "--trainer.logger=false"
    options = ["--data.test.size=6", "--data.eval_batch_size=4", f"--trainer.callbacks.path={tmp_path}/cli", logger]
    main(["test", "--config=configs/eval/tiny.yaml", *options])
    rows = {
        name: [json.loads(line) for line in (tmp_path / name / "samples.jsonl").read_text("utf-8").splitlines()]
        for name in ("api", "cli")
    }
    same = ("id", "response", "prediction", "iou", "failure", "reasoning_tokens")
    assert [[row[key] for key in same] for row in rows["api"]] == [[row[key] for key in same] for row in rows["cli"]]
    written = json.loads((tmp_path / "cli/metrics.json").read_text(encoding="utf-8"))
    assert (found.metrics["giou"], found.metrics["ciou"]) == (written["giou"], written["ciou"])
    assert found.headline.startswith("protocol segzero, N = 6: gIoU ")


def test_responses_are_scored_as_released() -> None:
    rows = [row for row in golden_rows("pixelthink_reward.jsonl.gz") if row["length_mode"] == "response_words"][:100]
    scores = pixelthink.score_responses(rows, "configs/reward/pixelthink.yaml")
    assert [score.reward for score in scores] == [row["expected"]["reward"] for row in rows]


def test_what_is_wrong_is_named(policy: api.Policy) -> None:
    with pytest.raises(UserError, match=r"unknown segmenter 'SAM9'; known: .*GrabCut"):
        pixelthink.load_segmenter("SAM9")
    with pytest.raises(UserError, match=r"no config\.json in '\./nowhere'"):
        pixelthink.load_policy("./nowhere")
    with pytest.raises(UserError, match=r"row 2 \(id 'b'\): no 'response'"):
        pixelthink.score_responses([golden_rows("pixelthink_reward.jsonl.gz")[0], {"id": "b"}], "configs/tiny.yaml")
    with pytest.raises(UserError, match=r"nothing\.png"):
        pixelthink.ask(policy, "nothing.png", "the cup")


def test_the_examples_of_the_page_run() -> None:
    found = doctest.testfile(str(ROOT / "docs/python.md"), module_relative=False)
    assert found.attempted >= 10
    assert found.failed == 0


def test_the_notebook_runs() -> None:
    notebook = json.loads((ROOT / "examples/ask_an_image.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 4
    names: dict[str, object] = {}
    for cell in cells:
        exec(cell, names)
    assert not any(cell.get("outputs") for cell in notebook["cells"])
