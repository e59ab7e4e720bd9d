"""However a minibatch is cut, every completion is in one piece and the gradient stays the same."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pixelthink.grpo.experience import Experience
from pixelthink.grpo.loss import GRPOConfig, LossAggregation, LossInputs, grpo_loss, loss_normalizer
from pixelthink.grpo.micro_batches import (
    drop_zero_advantage,
    in_order,
    micro_batch_rows,
    micro_batches,
    plan_padded,
    plan_shared,
)
from pixelthink.policies.base import EncodedPrompt
from pixelthink.policies.qwen_vl import Qwen25VL
from tests.tiny_models import gradients, random_prompt, random_tokens, relative_difference, tiny_model

CONFIG = GRPOConfig(entropy_coef=0.01, kl_coef=0.1)
SPLITS = {
    "1×8": replace(CONFIG, micro_batch_size=8),
    "8×1": replace(CONFIG, micro_batch_size=1),
    "3 at a time": replace(CONFIG, micro_batch_size=3),
    "tokens, less than a group": replace(CONFIG, micro_batch_tokens=30),
    "tokens, about a group": replace(CONFIG, micro_batch_tokens=60),
    "tokens, all": replace(CONFIG, micro_batch_tokens=10_000),
}


def experience(seed: int = 0) -> Experience[EncodedPrompt]:
    """Two groups of four completions, of 0 to 9 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [0, 1, 9, 4, 6, 2, 9, 3]
    completions = tuple(random_tokens(n, generator) for n in lengths)
    mask = pad_sequence([torch.ones(n, dtype=torch.bool) for n in lengths], batch_first=True)
    return Experience(
        prompts=[random_prompt([(4, 4)], generator), random_prompt([(4, 8)], generator)],
        completions=completions,
        prompt_index=(0, 0, 0, 0, 1, 1, 1, 1),
        mask=mask,
        advantages=torch.randn(8, generator=generator),
        old_logprobs=-4.5 + 0.2 * torch.randn(mask.shape, generator=generator),
        ref_logprobs=-4.5 + 0.2 * torch.randn(mask.shape, generator=generator),
    )


def step(
    backbone: Qwen25VL, model: nn.Module, whole: Experience[EncodedPrompt], config: GRPOConfig
) -> tuple[dict[str, Tensor], float]:
    """Gradient and loss of a minibatch, piece by piece."""
    total = 0.0
    for piece in micro_batches(whole, config, backbone.shares_prefix):
        scores = backbone.score(model, piece.prompts, piece.completions, piece.prompt_index, with_entropy=True)
        assert piece.old_logprobs is not None
        inputs = LossInputs(
            scores.logprobs, piece.old_logprobs, piece.ref_logprobs, piece.mask, piece.advantages, scores.entropy
        )
        loss = grpo_loss(inputs, config, normalizer=loss_normalizer(whole.mask, config)).loss
        loss.backward()
        total += loss.item()
    return gradients(model), total


@pytest.mark.parametrize("aggregation", get_args(LossAggregation))
@pytest.mark.parametrize("computation", ["shared_prefix", "padded"])
def test_every_split_gives_the_same_gradient_and_loss(computation: str, aggregation: LossAggregation) -> None:
    backbone, model = tiny_model("qwen2.5", logprobs=computation)
    whole = experience()
    splits = {name: replace(config, loss_aggregation=aggregation) for name, config in SPLITS.items()}
    expected, loss = step(backbone, model, whole, splits["1×8"])
    for name, config in splits.items():
        found, total = step(backbone, model, whole, config)
        assert relative_difference(found, expected) < 1e-5, name
        assert total == pytest.approx(loss, rel=1e-5), name


@pytest.mark.parametrize("config", SPLITS.values(), ids=SPLITS.keys())
@pytest.mark.parametrize("shared", [True, False])
def test_pieces_hold_every_completion_once_and_go_back_in_order(config: GRPOConfig, shared: bool) -> None:
    whole = experience()
    pieces = micro_batches(whole, config, shared)
    rows = micro_batch_rows(whole.prompts, whole.completions, whole.prompt_index, config, shared)
    assert sorted(row for part in rows for row in part) == list(range(8))
    assert whole.old_logprobs is not None
    values = [piece.old_logprobs * piece.mask for piece in pieces]  # type: ignore[operator]
    assert torch.equal(in_order(values, rows), whole.old_logprobs * whole.mask)
    for part, piece in zip(rows, pieces, strict=True):
        for row, completion in zip(part, piece.completions, strict=True):
            assert torch.equal(completion, whole.completions[row])


def test_groups_stay_together_within_the_budget() -> None:
    prompts, lengths, index = [20, 30, 10], [5, 5, 5, 5, 10, 10], [0, 0, 1, 1, 2, 2]
    pieces = plan_shared(prompts, lengths, index, budget=70)
    assert pieces == [[2, 3, 0, 1], [4, 5]] or [sorted(p) for p in pieces] == [[0, 1, 2, 3], [4, 5]]
    assert plan_shared(prompts, lengths, index, budget=1000) == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("seed", range(20))
def test_no_piece_is_over_the_budget_unless_it_is_a_single_completion(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(1, 60, (6,), generator=generator).tolist()
    lengths = torch.randint(0, 40, (30,), generator=generator).tolist()
    index = torch.randint(0, 6, (30,), generator=generator).tolist()
    budget = int(torch.randint(20, 300, (), generator=generator))
    for rows in plan_shared(prompts, lengths, index, budget):
        packed = sum(prompts[p] for p in {index[r] for r in rows}) + sum(lengths[r] for r in rows)
        assert packed <= budget or len(rows) == 1
    for rows in plan_padded(prompts, lengths, index, budget):
        table = len(rows) * max(prompts[index[r]] + lengths[r] for r in rows)
        assert table <= budget or len(rows) == 1


def test_packing_wastes_little() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 200, (160,), generator=generator).tolist()
    index = [n // 8 for n in range(160)]
    pieces = plan_shared([300] * 20, lengths, index, budget=4096)
    assert len(pieces) <= -(-(20 * 300 + sum(lengths)) // 4096) + 1


def test_completions_that_teach_nothing_cost_nothing() -> None:
    config = replace(CONFIG, entropy_coef=0.0, kl_coef=0.0, micro_batch_tokens=60)
    backbone, model = tiny_model("qwen2.5")
    whole = experience()
    flat = replace(whole, advantages=torch.cat([torch.zeros(4), whole.advantages[4:]]))
    kept = drop_zero_advantage(flat, config)
    assert kept.prompt_index == (1, 1, 1, 1)
    assert all(torch.equal(a, b) for a, b in zip(kept.completions, whole.completions[4:], strict=True))
    expected, loss = step(backbone, model, flat, config)
    for piece in micro_batches(kept, config):
        scores = backbone.score(model, piece.prompts, piece.completions, piece.prompt_index)
        inputs = LossInputs(scores.logprobs, piece.old_logprobs, None, piece.mask, piece.advantages)  # type: ignore[arg-type]
        output = grpo_loss(inputs, config, normalizer=flat.token_count)
        output.loss.backward()
    assert relative_difference(gradients(model), expected) < 1e-5
    assert output.loss.item() == pytest.approx(loss, rel=1e-5)
    assert drop_zero_advantage(flat, CONFIG) is flat
    assert len(drop_zero_advantage(replace(whole, advantages=torch.zeros(8)), config)) == 1


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="micro_batch_tokens"):
        GRPOConfig(micro_batch_tokens=-1)
