"""What an evaluation takes from its protocol, and that every difference from it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pixelthink.data.collate import Collate
from pixelthink.data.prompts import ShortPrompt
from pixelthink.evaluation.config import EvaluationConfig
from pixelthink.metrics.measured import Measured
from pixelthink.metrics.segmentation import SegmentationMetrics, metrics_document
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.types import Sample
from tests.support import ROOT


def policy_with(folder: Path, settings: dict[str, Any] | None) -> Qwen25VL:
    for file in (ROOT / "assets/tiny_policy").iterdir():
        if file.name != "generation_config.json" and file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    if settings is not None:
        (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return Qwen25VL(str(folder), local_files_only=True)


@pytest.mark.parametrize(
    ("protocol", "settings", "asked", "expected"),
    [
        ("segzero", {"repetition_penalty": 1.05}, None, 1.05),
        ("segzero", {"repetition_penalty": 1.05}, 1.0, 1.0),
        ("segzero", {}, None, 1.0),
        ("segzero", None, None, 1.0),
        ("lisa", {"repetition_penalty": 1.05}, None, 1.0),
        ("lisa", {"repetition_penalty": 1.05}, 1.2, 1.2),
    ],
)
def test_the_repetition_penalty_is_the_protocols_unless_it_is_set(
    tmp_path: Path, protocol: Any, settings: dict[str, Any] | None, asked: float | None, expected: float
) -> None:
    config = EvaluationConfig(protocol, sampling=SamplingConfig(1, 10, 0.0, repetition_penalty=asked))
    assert config.sampling_of(policy_with(tmp_path, settings)).repetition_penalty == expected


def test_every_difference_from_the_protocol_is_said() -> None:
    assert EvaluationConfig("segzero").deviations("bilinear", "bfloat16") == []
    assert EvaluationConfig("segzero").deviations(None, None) == []
    assert EvaluationConfig("lisa").deviations("bicubic", "none") == []
    sampling = SamplingConfig(1, 10, 0.7, repetition_penalty=1.0)
    assert EvaluationConfig("segzero", "pixelthink", sampling=sampling).deviations("bicubic", "none") == [
        "data.resize is bicubic, not bilinear",
        "model.segmenter.autocast is none, not bfloat16",
        "model.evaluation.acceptance is pixelthink, not segzero",
        "model.evaluation.sampling.repetition_penalty is 1, not the checkpoint's",
        "model.evaluation.sampling.temperature is 0.7, not 0",
    ]


def test_images_are_resized_as_asked() -> None:
    image = Image.open(ROOT / "assets/shapes.png").convert("RGB").resize((300, 200))
    sample = Sample("a", image, "the left shape")
    for resize, filter_ in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        prompt = Collate(ShortPrompt(), (112, 140), "pixels", resize=resize).prompt(sample)  # type: ignore[arg-type]
        assert prompt.image.tobytes() == image.resize((112, 140), filter_).tobytes()
    assert Collate(ShortPrompt(), (112, 140), "pixels").resize == "bilinear"  # as the released evaluation


def measured(name: str, union: int, failure: Any = None) -> Measured:
    return Measured(name, None, 0, union, 0.0, failure, (), 1, 1, 1, 1)


def test_samples_without_any_pixel_are_counted_and_none_is_dropped() -> None:
    metrics = SegmentationMetrics("segzero", bootstrap_samples=0)
    metrics.update([measured("a", 0), measured("b", 0, "no_json"), measured("c", 9)])
    document = metrics_document(metrics.compute())
    assert (document["n"], document["both_empty"], document["giou"]) == (3, 1, 0.0)
