"""Recipes of the cold start: which sample shows what, and the response that is learned."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from pixelthink.data.collate import Collate
from pixelthink.data.prompts import ShortPrompt, VisionReasonerPrompt
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.parsing import parse_completion
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.training.optim import WarmupHoldDecay
from pixelthink.training.recipes import Recipe, draw_recipe
from pixelthink.training.sft_module import SFTModule
from pixelthink.types import LEVELS, Prompt, PromptBatch, Sample


def module(path: Path | str, *recipes: Recipe) -> SFTModule:
    built = SFTModule(Qwen25VL(str(path), dtype="float32"), list(recipes))
    built.answerer.backbone.setup()
    return built


def prompt_of(sample: Sample) -> Prompt:
    return Collate(ShortPrompt(), (112, 112), "pixels").prompt(sample)


def test_samples_are_divided_by_weight(tiny_policy_path: Path) -> None:
    built = module(tiny_policy_path, Recipe("verbose", 3.0), Recipe("brief", 1.0), Recipe("steps", first_step=1))
    sample = ShapeScenes(size=1)[0]
    recipes = [draw_recipe(built.recipes, replace(sample, id=f"sample-{i}"), 0) for i in range(4000)]
    counts = Counter(recipe.reasoning for recipe in recipes if recipe is not None)
    assert set(counts) == {"verbose", "brief"}
    assert abs(counts["verbose"] - 3000) < 4 * (4000 * 0.75 * 0.25) ** 0.5


def test_the_learned_response_parses_to_the_target(tiny_policy_path: Path) -> None:
    recipe = Recipe("steps", prompt=ShortPrompt(" be brief."))
    built = module(tiny_policy_path, recipe)
    sample = ShapeScenes(size=1)[0]
    prompt, ids = built.example(prompt_of(sample), recipe)
    assert prompt.messages[-1]["content"][1]["text"] == f"find {sample.question}. be brief."
    assert ids[-1].item() == built.answerer.backbone.stop_token_ids[0]
    answer = parse_completion(built.answerer.backbone.processor.tokenizer.decode(ids[:-1]))
    assert answer.think_ok
    assert answer.reasoning == sample.reasoning["steps"]
    assert answer.box_xyxy == sample.targets[0].box_xyxy
    assert answer.points_xy == sample.targets[0].points_xy


def test_a_caption_ends_with_the_reasoning(tiny_policy_path: Path) -> None:
    recipe = Recipe("caption", answer=False)
    built = module(tiny_policy_path, recipe)
    sample = ShapeScenes(size=1)[0]
    _, ids = built.example(prompt_of(sample), recipe)
    text = built.answerer.backbone.processor.tokenizer.decode(ids[:-1])
    assert text == f"<think>{sample.reasoning['caption']}</think>"


def test_missing_reasoning_names_the_sample(tiny_policy_path: Path) -> None:
    built = module(tiny_policy_path, Recipe("long"))
    prompt = prompt_of(ShapeScenes(size=1)[0])
    with pytest.raises(ValueError, match="sample 'shapes-train-0-0' has no 'long' reasoning; it has: verbose"):
        built.example(prompt, built.recipes[0])


def test_a_recipe_of_some_levels_leaves_the_others_out(tiny_policy_path: Path) -> None:
    built = module(tiny_policy_path, Recipe("steps", levels=["hard"]))
    samples = [ShapeScenes(size=1, levels=[level])[0] for level in LEVELS]
    examples = built.examples(PromptBatch(tuple(prompt_of(sample) for sample in samples)))
    assert [prompt.sample.meta["level"] for prompt, _ in examples] == ["hard"]
    with pytest.raises(ValueError, match="no recipe is shown for any sample of step 0"):
        built.examples(PromptBatch((prompt_of(samples[0]),)))


def test_a_recipe_without_reasoning_leaves_its_share_out(tiny_policy_path: Path) -> None:
    built = module(tiny_policy_path, Recipe("steps", 1.0), Recipe(None, 3.0))
    samples = [ShapeScenes(size=400)[i] for i in range(400)]
    shown = [sample.id for sample in samples if draw_recipe(built.recipes, sample, 0) is not None]
    assert abs(len(shown) - 100) < 4 * (400 * 0.25 * 0.75) ** 0.5
    examples = built.examples(PromptBatch(tuple(prompt_of(sample) for sample in samples)))
    assert [prompt.sample.id for prompt, _ in examples] == shown


def test_only_recipes_that_show_something_ask_for_an_answer_style(tiny_policy_path: Path) -> None:
    several, single = VisionReasonerPrompt(), ShortPrompt()
    accepted = module(tiny_policy_path, Recipe("brief", prompt=single), Recipe(None, prompt=several))
    refused = module(tiny_policy_path, Recipe("brief", prompt=several), Recipe(None, prompt=single))
    for built in (accepted, refused):
        built.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    accepted.setup("fit")
    with pytest.raises(ValueError, match="the prompt asks for several objects"):
        refused.setup("fit")


def test_recipes_that_never_show_are_refused() -> None:
    with pytest.raises(ValueError, match="no step lies from 5 to 5"):
        Recipe("brief", first_step=5, last_step=5)
    with pytest.raises(ValueError, match="weight must be positive"):
        Recipe("brief", weight=0.0)


def test_the_rate_warms_up_holds_and_falls_in_its_share_of_the_run() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = WarmupHoldDecay(optimizer, total_steps=10, warmup_steps=2, decay_share=0.4, floor=0.05)
    rates = []
    for _ in range(11):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0.05])
    with pytest.raises(ValueError, match=r"decay_share must lie in \(0, 1\], not 0"):
        WarmupHoldDecay(optimizer, total_steps=10, decay_share=0)
