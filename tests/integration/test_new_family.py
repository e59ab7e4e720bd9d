"""The family that docs/new_model_family.md writes in one file trains, is tested, and samples as it scores."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pixelthink.cli.main import main
from pixelthink.data.collate import Collate
from pixelthink.data.prompts import ShortPrompt
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.policies.tiny import CHAT_TEMPLATE, LEXICON, build_tokenizer
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.rollouts.hf import HFEngine
from tests.support import ROOT, tiny_run

pytestmark = pytest.mark.slow

SIDE = 112


@pytest.fixture(scope="module")
def llava_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small random LLaVA with its processor."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = build_tokenizer(LEXICON, 1000)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    template = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**sizes, "model_type": "llama", "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    vision = {**sizes, "model_type": "clip_vision_model", "image_size": SIDE, "patch_size": 14}
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    folder = tmp_path_factory.mktemp("llava")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(
            LlavaConfig(
                text_config=text, vision_config=vision, image_token_index=image_token, image_token_id=image_token
            )
        )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide's code as a file."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/new_model_family.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    file = tmp_path_factory.mktemp("plugin") / "my_llava.py"
    file.write_text(code[1], encoding="utf-8")
    return file


def test_it_trains_and_is_tested(plugin: Path, llava_path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PIXELTHINK_PLUGINS", "my_llava")
    monkeypatch.syspath_prepend(str(plugin.parent))
    policy = f"{{class_path: my_llava.Llava, init_args: {{path: {llava_path}, dtype: float32}}}}"
    options = [*tiny_run(tmp_path, llava_path), f"--model.policy={policy}", "--data.coordinates=per_mille"]
    main(["fit", *options, "--trainer.limit_val_batches=0"])
    main(["test", *options, f"--ckpt_path={tmp_path}/checkpoints/last.ckpt"])
    assert (tmp_path / "policy/model.safetensors").is_file()


def test_it_samples_as_it_scores(plugin: Path, llava_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("llava_of_the_guide", plugin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    backbone = module.Llava(str(llava_path), dtype="float32")
    backbone.setup()
    model = backbone.load_model()
    scenes = ShapeScenes(split="val", size=2)
    batch = Collate(ShortPrompt(), (SIDE, SIDE), "per_mille")([scenes[0], scenes[1]])
    engine = HFEngine()
    engine.setup(backbone, model)
    rollout = engine.generate(batch, SamplingConfig(2, 8), seed=0)
    completions = [torch.tensor(c.token_ids) for c in rollout.completions]
    with torch.no_grad():
        scores = backbone.score(model, backbone.encode(batch.prompts), completions, [0, 0, 1, 1]).logprobs
    for row, completion in zip(scores, rollout.completions, strict=True):
        found = torch.tensor(completion.logprobs)
        torch.testing.assert_close(row[: len(found)], found, rtol=0, atol=1e-5)
