"""What vLLM is asked and what its answers mean; the engine is tested in tests/integration/test_vllm_engine.py."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pixelthink.callbacks.weight_sync import RolloutWeightSync
from pixelthink.data.collate import Collate
from pixelthink.data.prompts import ShortPrompt
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.rollouts.parity import without_images
from pixelthink.rollouts.vllm import VLLMEngine
from pixelthink.rollouts.vllm_launch import max_positions
from pixelthink.rollouts.vllm_requests import (
    completion_from_tokens,
    image_prompt,
    request_seeds,
    sampling_options,
    shares_of_batch,
)
from pixelthink.types import Prompt, Timings


@pytest.fixture(scope="module")
def backbone(tiny_policy_path: Path) -> Qwen25VL:
    backbone = Qwen25VL(path=str(tiny_policy_path), dtype="float32", local_files_only=True)
    backbone.setup()
    return backbone


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return Collate(ShortPrompt(), (112, 112), "pixels")([ShapeScenes(split="val", size=1)[0]]).prompts[0]


def test_the_prompt_has_one_placeholder_and_the_picture(backbone: Qwen25VL, prompt: Prompt) -> None:
    sent = image_prompt(backbone, prompt)
    placeholder = backbone.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert sent.text.count("<|image_pad|>") == sent.token_ids.count(placeholder) == 1
    assert sent.images == (prompt.image,)
    read = backbone.encode([prompt])[0].token_ids.tolist()
    assert [t for t in read if t != placeholder] == [t for t in sent.token_ids if t != placeholder]
    assert read.count(placeholder) == 16


def test_a_prompt_without_its_image_has_neither(backbone: Qwen25VL, prompt: Prompt) -> None:
    sent = image_prompt(backbone, without_images(prompt))
    assert sent.images == ()
    assert "<|image_pad|>" not in sent.text
    assert backbone.encode_text(without_images(prompt)).token_ids.tolist() == list(sent.token_ids)


def test_requests_forbid_image_tokens_and_stop_where_the_policy_does(backbone: Qwen25VL) -> None:
    options = sampling_options(backbone, SamplingConfig(8, 77, temperature=0.7, top_p=0.9, top_k=20), seed=5)
    assert set(options["logit_bias"]) == set(backbone.forbidden_token_ids)
    assert max(options["logit_bias"].values()) == -100
    assert options["stop_token_ids"] == list(backbone.stop_token_ids)
    names = ("n", "max_tokens", "temperature", "top_p", "top_k", "seed", "logprobs")
    assert [options[name] for name in names] == [8, 77, 0.7, 0.9, 20, 5, 5]


def test_seeds_are_a_function_of_the_rollouts_and_differ_between_prompts() -> None:
    seeds = request_seeds(17, range(64))
    assert seeds == request_seeds(17, range(64))
    assert seeds[1::2] == request_seeds(17, range(1, 64, 2)), "a seed goes by the prompt's place, not by its process"
    assert len({*seeds, *request_seeds(18, range(64))}) == 128
    assert all(0 <= seed < 2**62 for seed in seeds)


def test_tokens_become_a_completion(backbone: Qwen25VL) -> None:
    tokenizer = backbone.processor.tokenizer
    text = "<think>hm</think><answer>{}</answer>"
    token_ids = [*tokenizer.encode(text), backbone.stop_token_ids[0]]
    halves = [{t: math.log(0.2), -1: math.log(0.5), -2: math.log(0.25), -3: -9.0} for t in token_ids]
    completion = completion_from_tokens(backbone, token_ids, halves, top_k=2)
    assert completion.text == text
    assert completion.finish_reason == "stop"
    assert completion.logprobs == pytest.approx([math.log(0.2)] * len(token_ids))
    assert completion.uncertainty == pytest.approx(1 - (0.5 - 0.25))
    cut = completion_from_tokens(backbone, token_ids[:-1], halves[:-1], top_k=2)
    assert (cut.text, cut.finish_reason) == (text, "length")


@pytest.mark.parametrize(
    ("token_ids", "candidates", "message"),
    [
        ([], [], "0 tokens"),
        ([5, 6], [{5: -1.0, 6: -2.0}], "2 tokens with 1 lists"),
        ([5], [{6: -1.0, 7: -2.0}], "token 5 without its log-probability"),
        ([5], [{5: -1.0}], "two log-probabilities"),
    ],
)
def test_answers_that_lack_something_are_refused(
    backbone: Qwen25VL, token_ids: list[int], candidates: list[dict[int, float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        completion_from_tokens(backbone, token_ids, candidates, top_k=5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"gpu_memory_share": 1.0}, "gpu_memory_share"),
        ({"kv_cache_gib": -1.0}, "kv_cache_gib"),
        ({"max_model_len": 0}, "max_model_len"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size"),
        ({"sleep_level": 3}, "sleep_level"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        VLLMEngine(**options)


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"parity_tokens": 0}, {"limit": 0.0}, {"limit": -1.0}])
def test_bad_options_of_the_callback_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"RolloutWeightSync: .*{next(iter(options))}"):
        RolloutWeightSync(**options)


def test_without_vllm_the_error_names_both_ways_to_get_it(backbone: Qwen25VL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"pip install 'pixelthink\[vllm\]'.*make vllm") as caught:
        VLLMEngine().setup(backbone, backbone.load_model())
    assert "\n" not in str(caught.value)


def stamps(scheduled: float, first: float, last: float) -> SimpleNamespace:
    return SimpleNamespace(scheduled_ts=scheduled, first_token_ts=first, last_token_ts=last)


def test_shares_of_a_batch_add_up_to_its_time() -> None:
    found = shares_of_batch([stamps(11.0, 12.0, 14.0), stamps(11.0, 12.0, 18.0)], 10.0, 19.0, built_seconds=0.5)
    # 1.5 s of preparation; 8 s are left for spans of 1 + 2 and 1 + 6 seconds
    assert [t.preparation_ms for t in found] == [750, 750]
    assert [t.prefill_ms for t in found] == pytest.approx([800, 800])
    assert [t.decoding_ms for t in found] == pytest.approx([1600, 4800])
    assert [t.segmentation_ms for t in found] == [None, None]


def test_a_batch_of_which_vllm_kept_no_times_is_unmeasured() -> None:
    assert shares_of_batch([stamps(1, 2, 3), None], 0, 4) == [Timings()] * 2
    assert shares_of_batch([stamps(0, 0, 0)], 0, 4) == [Timings()]
    assert shares_of_batch([], 0, 4) == []


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"text_config": {"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "default"}}}, 2048),
        ({"max_position_embeddings": 512, "rope_scaling": None}, 512),
        ({"max_position_embeddings": 512, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, None),
        ({}, None),
    ],
)
def test_positions_of_a_model(config: dict[str, Any], expected: int | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert max_positions(tmp_path) == expected
