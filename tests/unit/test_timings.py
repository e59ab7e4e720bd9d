"""Where the time of an answer goes: shares that add up to what was measured."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelthink.answering.segmenting import segment_answers
from pixelthink.data.collate import Collate
from pixelthink.data.prompts import ShortPrompt
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.geometry import CoordinateFrame
from pixelthink.parsing import answer_text, parse_completion
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.rollouts.completions import make_completion
from pixelthink.rollouts.hf import HFEngine
from pixelthink.segmenters.base import SegmentationRequest, Segmenter
from pixelthink.types import Completion, Prompt, PromptBatch, RolloutBatch, Sample, Timings

OBJECT = '{"bbox": [0, 0, 3, 3], "points_1": [1, 1], "points_2": [2, 2]}'
ANSWER = f"<think>hm</think><answer>{OBJECT}</answer>"


@pytest.fixture(scope="module")
def answered(tiny_policy_path: Path) -> RolloutBatch:
    backbone = Qwen25VL(path=str(tiny_policy_path), dtype="float32", local_files_only=True)
    backbone.setup()
    engine = HFEngine(batch_size=4)
    engine.setup(backbone, backbone.load_model())
    samples = ShapeScenes(split="val", size=6)
    batch = Collate(ShortPrompt(), (112, 112), "pixels")([samples[i] for i in range(6)])
    return engine.generate(batch, SamplingConfig(group_size=2, max_new_tokens=12), seed=0)


def milliseconds(rollout: RolloutBatch, stage: str) -> list[float]:
    found = [getattr(completion.timings, stage) for completion in rollout.completions]
    assert all(value is not None and value >= 0 for value in found)
    return found


def test_the_shares_of_a_batch_add_up_to_its_time(answered: RolloutBatch) -> None:
    stages = {name: sum(milliseconds(answered, name)) for name in ("preparation_ms", "prefill_ms", "decoding_ms")}
    assert min(stages.values()) > 0
    assert sum(stages.values()) <= 1000 * answered.seconds
    assert sum(stages.values()) > 0.5 * 1000 * answered.seconds, "most of the time is in the three stages"


def test_decoding_is_shared_by_tokens_and_prefill_evenly(answered: RolloutBatch) -> None:
    first_call = answered.completions[:4]  # two prompts a call
    prefill = {completion.timings.prefill_ms for completion in first_call}
    per_token = [(c.timings.decoding_ms or 0) / len(c.token_ids) for c in first_call]
    assert len(prefill) == 1
    assert per_token == pytest.approx([per_token[0]] * 4)


class Sleepy(Segmenter):
    """Takes 20 ms a request."""

    def segment(self, requests: list[SegmentationRequest]) -> list[np.ndarray]:  # type: ignore[override]
        time.sleep(0.02 * len(requests))
        return [np.ones(request.image.size[::-1], dtype=bool) for request in requests]


def case(text: str, preparation_ms: float | None = 1.5) -> tuple[Prompt, Completion]:
    image = Image.new("RGB", (8, 8))
    prompt = Prompt(Sample("a", image, "q"), (), image, CoordinateFrame((8, 8), (8, 8)), (), preparation_ms)
    return prompt, Completion((1,), (0.0,), text, "stop", 0, None, timings=Timings(2.0, 3.0, 4.0))


def test_an_answer_takes_from_its_image_to_its_mask() -> None:
    cases = [case(ANSWER), case("nothing"), case(ANSWER)]
    prompts, completions = zip(*cases, strict=True)
    answers = [parse_completion(completion.text) for completion in completions]
    timings = [
        prediction.timings for prediction in segment_answers(prompts, completions, answers, Sleepy(), "pixelthink")
    ]
    assert timings[1] == Timings(3.5, 3.0, 4.0, 0.0)
    assert timings[1].total_ms == 10.5
    for found in (timings[0], timings[2]):
        assert found.segmentation_ms == pytest.approx(20, abs=15)
        assert replace(found, segmentation_ms=None) == Timings(3.5, 3.0, 4.0, None)


def test_what_nobody_measured_is_none_and_no_zero() -> None:
    prompt, completion = case(ANSWER, preparation_ms=None)
    (prediction,) = segment_answers([prompt], [completion], [parse_completion(ANSWER)], Sleepy(), "pixelthink")
    assert prediction.timings.preparation_ms is None
    assert prediction.timings.total_ms is None


def test_timings_do_not_make_answers_differ() -> None:
    _, completion = case(ANSWER)
    assert completion == replace(completion, timings=Timings())


def test_the_resize_is_measured() -> None:
    samples = ShapeScenes(split="val", size=1)
    batch: PromptBatch = Collate(ShortPrompt(), (840, 840), "pixels")([samples[0]])
    assert (batch.prompts[0].preparation_ms or 0) > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [(ANSWER, OBJECT), ("<answer> [1] </answer><answer>x</answer>", "[1]"), ("<answer>{", ""), ("", "")],
)
def test_answer_text(text: str, expected: str) -> None:
    assert answer_text(text) == expected


def test_tokens_inside_the_answer_are_counted(tiny_policy_path: Path) -> None:
    backbone = Qwen25VL(path=str(tiny_policy_path), dtype="float32", local_files_only=True)
    backbone.setup()
    token_ids = backbone.processor.tokenizer.encode(ANSWER, add_special_tokens=False)
    zeros = [0.0] * len(token_ids)
    completion = make_completion(backbone, token_ids, zeros, [[-0.1, -3.0]] * len(token_ids), stopped=False)
    assert completion.text == ANSWER
    assert completion.answer_tokens == len(backbone.processor.tokenizer.encode(OBJECT))
    assert completion.reasoning_tokens == len(backbone.processor.tokenizer.encode("hm"))
