"""Both families from disk: the right class, the processor's limits, and the numbers of transformers' own forward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pixelthink.data.collate import Collate
from pixelthink.data.prompts import ShortPrompt
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.policies.qwen3_vl import Qwen3VL
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.policies.tiny import FreshTinyQwen3VL
from pixelthink.types import Prompt

FAMILIES = {"qwen2.5": (Qwen25VL, "tiny_policy_path", 112), "qwen3": (Qwen3VL, "tiny_qwen3_path", 128)}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Any, Path, int]:
    """A backbone's class, the folder of a tiny policy of its family, and the side of that policy's images."""
    backbone, fixture, side = FAMILIES[request.param]
    return backbone, request.getfixturevalue(fixture), side


def shape_prompts(count: int, side: int) -> tuple[Prompt, ...]:
    """Questions about shapes, their images resized to a side."""
    scenes = ShapeScenes(split="val", size=count)
    return Collate(ShortPrompt(), (side, side), "pixels")([scenes[i] for i in range(count)]).prompts


def test_scores_are_those_of_the_plain_transformers_model(family: tuple[Any, Path, int]) -> None:
    """Rotary positions, image features and chat template as transformers makes them by itself, in one padded batch."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    backbone_class, path, side = family
    backbone = backbone_class(str(path), dtype="float32")
    backbone.setup()
    model = backbone.load_model()
    prompts = shape_prompts(3, side)
    completions = [torch.arange(20, 20 + length) for length in (6, 3, 9)]
    with torch.no_grad():
        found = backbone.score(model, backbone.encode(prompts), completions, range(3)).logprobs

    plain = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(path)
    for prompt, completion, row in zip(prompts, completions, found, strict=True):
        messages = [dict(message) for message in prompt.messages]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = processor(text=[text], images=[prompt.image], return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        for name, filling in (("input_ids", completion), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            if name in inputs:
                more = torch.zeros_like(completion) + filling
                inputs[name] = torch.cat([inputs[name], more[None]], dim=1)
        with torch.no_grad():
            logits = plain(**inputs).logits[0, length - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]
        torch.testing.assert_close(row[: len(completion)], expected, rtol=0, atol=1e-5)


def test_a_checkpoint_of_the_other_family_names_the_right_class(tiny_policy_path: Path, tiny_qwen3_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tiny_qwen30' is a qwen3_vl model: use Qwen3VL for it, not Qwen25VL$"):
        Qwen25VL(str(tiny_qwen3_path)).setup()
    with pytest.raises(ValueError, match=r"tiny_policy0' is a qwen2_5_vl model: use Qwen25VL for it, not Qwen3VL$"):
        Qwen3VL(str(tiny_policy_path)).setup()


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        (
            "paligemma",
            r"is a paligemma model, a family that has no class yet .*Qwen25VL, Qwen3VL.*docs/new_model_family\.md",
        ),
        ("bert", "is a bert model, which does not take an image and text to text"),
    ],
)
def test_other_families_are_told_what_they_lack(model_type: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Qwen25VL(str(tmp_path)).setup()


def test_pixel_limits_are_the_processors(family: tuple[Any, Path, int]) -> None:
    backbone_class, path, side = family
    backbone = backbone_class(str(path), dtype="float32")
    backbone.setup()
    prompt = shape_prompts(1, side)[0]
    assert int((backbone.encode([prompt])[0].token_ids == backbone.forbidden_token_ids[0]).sum()) == 16
    limited = backbone_class(str(path), dtype="float32", max_pixels=(side // 2) ** 2)
    limited.setup()
    with pytest.raises(ValueError, match=rf"the processor would make it \({side // 2}, {side // 2}\)"):
        limited.encode([prompt])
    larger = backbone_class(str(path), dtype="float32", min_pixels=4 * side**2, max_pixels=16 * side**2)
    larger.setup()
    with pytest.raises(ValueError, match=rf"the processor would make it \({2 * side}, {2 * side}\)"):
        larger.encode([prompt])
    assert int((larger.encode(shape_prompts(1, 2 * side))[0].token_ids == backbone.forbidden_token_ids[0]).sum()) == 64


def test_a_fresh_qwen3_spells_each_thousandth_as_one_token() -> None:
    backbone = FreshTinyQwen3VL(hidden_size=64, layers=1)
    backbone.setup()
    assert all(backbone.count_tokens(str(number)) == 1 for number in (0, 7, 128, 999, 1000))
    assert backbone.load_model().config.model_type == Qwen3VL.model_type
    with pytest.raises(ValueError, match="image_side must be a multiple of 32, not 112"):
        FreshTinyQwen3VL(image_side=112)
