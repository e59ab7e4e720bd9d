"""Sampling with the policy itself: against transformers' `generate`, and against the policy's own forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelthink.data.collate import Collate
from pixelthink.data.prompts import ShortPrompt
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.policies.base import EncodedPrompt
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.policies.tiny import FreshTinyQwen25VL
from pixelthink.rollouts import decode
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.rollouts.group_cache import IDLE, GroupCache
from pixelthink.rollouts.hf import HFEngine
from pixelthink.rollouts.sampling import draw
from pixelthink.types import PromptBatch, RolloutBatch
from tests.tiny_models import FAMILIES, random_prompt, tiny_model


class OftenStopping(FreshTinyQwen25VL):
    """A policy that takes a fifth of its vocabulary for stop tokens, so that completions end at all times."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return tuple({*super().stop_token_ids, *range(0, len(self.processor.tokenizer), 5)})


@pytest.fixture(scope="module")
def policy() -> tuple[OftenStopping, nn.Module]:
    backbone = OftenStopping(
        hidden_size=48, layers=2, heads=4, intermediate_size=64, vision_hidden_size=32, vision_layers=2
    )
    backbone.setup()
    model = backbone.load_model()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return backbone, model


@pytest.fixture(scope="module")
def batch() -> PromptBatch:
    samples = ShapeScenes(split="val", size=5)
    return Collate(ShortPrompt(), (112, 112), "pixels")([samples[i] for i in range(5)])


def rollout(policy: Any, batch: PromptBatch, sampling: SamplingConfig, seed: int = 0, **options: Any) -> RolloutBatch:
    engine = HFEngine(**options)
    engine.setup(*policy)
    return engine.generate(batch, sampling, seed)


def generated(policy: Any, batch: PromptBatch, steps: int, penalty: float = 1.0) -> list[list[int]]:
    """What transformers' own `generate` answers greedily."""
    backbone, model = policy
    answers = []
    for prompt in backbone.encode(batch.prompts):
        output = model.eval().generate(
            input_ids=prompt.token_ids[None],
            attention_mask=torch.ones_like(prompt.token_ids)[None],
            mm_token_type_ids=(prompt.token_ids == model.config.image_token_id).int()[None],
            pixel_values=prompt.pixel_values,
            image_grid_thw=prompt.image_grid,
            do_sample=False,
            repetition_penalty=penalty,
            max_new_tokens=steps,
            eos_token_id=list(backbone.stop_token_ids),
            pad_token_id=backbone.processor.tokenizer.pad_token_id,
            suppress_tokens=list(backbone.forbidden_token_ids),
        )
        answers.append(output[0, len(prompt.token_ids) :].tolist())
    return answers


def test_greedy_answers_are_those_of_transformers_generate(policy: Any, batch: PromptBatch) -> None:
    found = rollout(policy, batch, SamplingConfig(group_size=1, temperature=0.0, max_new_tokens=40))
    assert [list(c.token_ids) for c in found.completions] == generated(policy, batch, 40)


def test_a_repetition_penalty_is_that_of_transformers_generate(policy: Any, batch: PromptBatch) -> None:
    greedy = SamplingConfig(group_size=1, temperature=0.0, max_new_tokens=40)
    plain = [list(c.token_ids) for c in rollout(policy, batch, greedy).completions]
    for penalty in (1.05, 1.5, 0.8):
        found = rollout(policy, batch, replace(greedy, repetition_penalty=penalty)).completions
        assert [list(c.token_ids) for c in found] == generated(policy, batch, 40, penalty)
        assert penalty == 1.05 or [list(c.token_ids) for c in found] != plain
    with pytest.raises(ValueError, match="repetition_penalty must be positive"):
        SamplingConfig(repetition_penalty=0.0)


@pytest.mark.parametrize(
    "sampling", [SamplingConfig(8, 30), SamplingConfig(8, 30, temperature=1.5, top_p=0.8, top_k=50)]
)
def test_logprobs_are_those_of_the_policys_forward(policy: Any, batch: PromptBatch, sampling: SamplingConfig) -> None:
    backbone, model = policy
    completions = rollout(policy, batch, sampling).completions
    lengths = [len(c.token_ids) for c in completions]
    assert len(set(lengths)) > 8, "completions must end at different times, else compaction is not tested"
    prompts = backbone.encode(batch.prompts)
    index = [i // sampling.group_size for i in range(len(completions))]
    with torch.no_grad():
        scores = backbone.score(model, prompts, [torch.tensor(c.token_ids) for c in completions], index)
    for row, completion in zip(scores.logprobs, completions, strict=True):
        torch.testing.assert_close(
            row[: len(completion.logprobs)], torch.tensor(completion.logprobs), rtol=0, atol=1e-5
        )


def test_completions_end_as_the_contract_says(policy: Any, batch: PromptBatch) -> None:
    backbone, _ = policy
    for completion in rollout(policy, batch, SamplingConfig(8, 12)).completions:
        stops = [token in backbone.stop_token_ids for token in completion.token_ids]
        assert not any(stops[:-1])
        assert completion.finish_reason == ("stop" if stops[-1] else "length")
        assert stops[-1] or len(stops) == 12
        assert len(completion.logprobs) == len(completion.token_ids)
        assert completion.text == backbone.processor.tokenizer.decode(completion.token_ids[: len(stops) - stops[-1]])
        assert completion.uncertainty is not None
        assert not set(completion.token_ids) & set(backbone.forbidden_token_ids)


def test_a_seed_gives_the_same_completions_whatever_is_decoded_beside_them(
    policy: Any, batch: PromptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = SamplingConfig(4, 25)
    ids = [c.token_ids for c in rollout(policy, batch, sampling, seed=3).completions]
    assert [c.token_ids for c in rollout(policy, batch, sampling, seed=3, batch_size=8).completions] == ids
    assert [c.token_ids for c in rollout(policy, batch, sampling, seed=4).completions] != ids
    monkeypatch.setattr(decode, "COMPACT_BELOW", 0.0)
    assert [c.token_ids for c in rollout(policy, batch, sampling, seed=3).completions] == ids
    monkeypatch.setattr(decode, "RESERVE_STEPS", 1)
    assert [c.token_ids for c in rollout(policy, batch, sampling, seed=3).completions] == ids


def test_two_processes_sample_what_one_would(policy: Any, batch: PromptBatch) -> None:
    sampling = SamplingConfig(3, 20)
    whole = [c.token_ids for c in rollout(policy, batch, sampling, seed=7).completions]
    for rank in (0, 1):
        places = range(rank, len(batch), 2)
        share = PromptBatch(tuple(batch.prompts[p] for p in places), tuple(places))
        found = [c.token_ids for c in rollout(policy, share, sampling, seed=7).completions]
        assert found == [whole[3 * p + g] for p in places for g in range(3)]


def test_finished_completions_stop_costing(policy: Any, batch: PromptBatch) -> None:
    class Counting(OftenStopping):
        places: list[int] = []  # noqa: RUF012

        def decode(self, model: nn.Module, token_ids: Tensor, *rest: Any) -> Tensor:
            self.places.append(token_ids.numel())
            return super().decode(model, token_ids, *rest)

    backbone, model = policy
    counting = Counting.__new__(Counting)
    counting.__dict__.update(backbone.__dict__)
    completions = rollout((counting, model), batch, SamplingConfig(8, 30)).completions
    alive = [sum(len(c.token_ids) > step for c in completions) for step in range(1, 30)]
    alive = [count for count in alive if count]
    assert len(counting.places) == len(alive)
    assert sum(counting.places) < 0.6 * 40 * len(alive)


def test_the_random_state_and_the_mode_are_left_alone(policy: Any, batch: PromptBatch) -> None:
    _, model = policy
    model.train()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    rollout(policy, batch, SamplingConfig(2, 3))
    assert torch.equal(torch.rand(3), expected)
    assert model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_equals_scoring_for_both_families_and_any_images(family: str) -> None:
    backbone, model = tiny_model(family)
    generator = torch.Generator().manual_seed(0)
    prompts = [random_prompt(grids, generator) for grids in ([(4, 6)], [], [(8, 4), (4, 4)])]
    cache = GroupCache(reserve=2)
    model.eval()
    with torch.no_grad():
        prefill = backbone.prefill(model, prompts, cache)
        cache.open_prompts(prefill.lengths)
        tokens = torch.randint(0, 90, (3, 2, 4), generator=generator)
        steps = [prefill.logits[:, None].expand(-1, 2, -1)]
        slots = torch.tensor([[0, 1], [1, 0], [0, IDLE]])
        for i in range(3):
            cache.open(slots)
            positions = (prefill.positions[:, None] + i).expand(-1, 2)
            steps.append(backbone.decode(model, tokens[:, :, i], positions, cache, cache.visible(slots)))
        found = torch.stack(steps, dim=2).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        expected = score(backbone, model, prompts, [tokens[p, q] for p in range(3) for q in range(2)])
    torch.testing.assert_close(found.flatten(0, 1)[:5], expected[:5], rtol=0, atol=1e-5)


def score(backbone: Qwen25VL, model: nn.Module, prompts: Sequence[EncodedPrompt], completions: list[Tensor]) -> Tensor:
    return backbone.score(model, prompts, completions, [i // 2 for i in range(len(completions))]).logprobs


def test_draws_follow_the_distribution_and_its_restrictions() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    table = logits.expand(len(uniform), -1)
    nothing = torch.zeros(0, dtype=torch.int64)

    def shares(forbidden: Tensor = nothing, **options: Any) -> Tensor:
        tokens = draw(table, forbidden, SamplingConfig(**options), uniform)
        return torch.bincount(tokens, minlength=5) / len(uniform)

    def softmax_of(tokens: list[int], temperature: float = 1.0) -> Tensor:
        kept = torch.full((5,), -torch.inf)
        kept[tokens] = logits[tokens] / temperature
        return kept.softmax(0)

    for found, expected in [
        (shares(), softmax_of([0, 1, 2, 3, 4])),
        (shares(temperature=0.5), softmax_of([0, 1, 2, 3, 4], 0.5)),
        (shares(forbidden=torch.tensor([4, 1])), softmax_of([0, 2, 3])),
        (shares(top_k=2), softmax_of([4, 0])),
        (shares(top_p=0.7), softmax_of([4, 0])),  # 0.64, then 0.87 of the whole
        (shares(top_p=0.01), softmax_of([4])),
        (shares(temperature=0.0, group_size=1), softmax_of([4])),
    ]:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_a_draw_at_either_end_is_never_forbidden() -> None:
    logits = torch.zeros(2, 4)
    tokens = draw(logits, torch.tensor([0, 3]), SamplingConfig(), torch.tensor([0.0, 1 - 2**-24]))
    assert tokens.tolist() == [1, 2]
