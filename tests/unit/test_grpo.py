"""GRPO against the released functions and against hand-computed values."""

from __future__ import annotations

import math

import pytest
import torch

from pixelthink.errors import UserError
from pixelthink.grpo.advantages import flat_group_share, group_advantages
from pixelthink.grpo.loss import GRPOConfig, LossInputs, grpo_loss, k3_kl
from tests.support import golden_rows

ROWS = golden_rows("grpo_loss.jsonl.gz")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["id"]))
def test_released_advantages_loss_and_gradient(row: dict) -> None:
    expected = row["expected"]
    advantages = group_advantages(torch.tensor(row["scores"]), row["group_size"])
    torch.testing.assert_close(advantages, torch.tensor(expected["advantages"]), rtol=1e-5, atol=1e-5)

    logprobs = torch.tensor(row["logprobs"], requires_grad=True)
    lengths = torch.tensor(row["lengths"])
    mask = torch.arange(logprobs.shape[1])[None] < lengths[:, None]
    inputs = LossInputs(
        logprobs, torch.tensor(row["old_logprobs"]), torch.tensor(row["ref_logprobs"]), mask, advantages
    )
    output = grpo_loss(inputs, GRPOConfig(clip=row["clip"], kl_coef=row["kl_coef"]))
    output.loss.backward()

    names = {"policy_loss": "policy_loss", "clip_fraction": "clip_fraction", "approx_kl": "ppo_kl", "kl": "kl_loss"}
    for ours, theirs in names.items():
        assert output.stats[ours].item() == pytest.approx(expected[theirs], abs=1e-5, rel=1e-5), ours
    assert output.loss.item() == pytest.approx(expected["loss"], abs=1e-5, rel=1e-5)
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor(expected["grad"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", golden_rows("grpo_loss_seq_mean.jsonl.gz"), ids=lambda row: str(row["id"]))
def test_released_mean_over_completions(row: dict) -> None:
    advantages = group_advantages(torch.tensor(row["scores"], dtype=torch.float64), row["group_size"])
    expected = torch.tensor(row["expected"]["advantages"], dtype=torch.float64)
    torch.testing.assert_close(advantages, expected, rtol=1e-5, atol=1e-5)
    values = {
        name: torch.tensor(row[name], dtype=torch.float64) for name in ("old_logprobs", "ref_logprobs", "entropy")
    }
    logprobs = torch.tensor(row["logprobs"], dtype=torch.float64, requires_grad=True)
    mask = torch.arange(logprobs.shape[1])[None] < torch.tensor(row["lengths"])[:, None]
    config = GRPOConfig(
        clip=row["clip"], kl_coef=row["kl_coef"], entropy_coef=row["entropy_coef"], loss_aggregation=row["aggregation"]
    )
    output = grpo_loss(LossInputs(logprobs, mask=mask, advantages=advantages, **values), config)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(row["expected"]["loss"], abs=1e-6)
    torch.testing.assert_close(logprobs.grad, torch.tensor(row["expected"]["grad"]).double(), rtol=1e-5, atol=1e-7)


def test_aggregations_by_hand() -> None:
    """Two completions of 1 and 3 tokens, ratio 1, advantages 1 and −2, entropies 1 at each token."""
    logprobs = torch.zeros(2, 3)
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    inputs = LossInputs(logprobs, logprobs, None, mask, torch.tensor([1.0, -2.0]), entropy=torch.ones(2, 3))
    expected = {
        "token-mean": ((-1 + 3 * 2) / 4, 1.0),
        "seq-mean-token-mean": ((-1 + 2) / 2, 1.0),
        "seq-mean-token-sum-norm": ((-1 / 10 + 6 / 10) / 2, (1 / 10 + 3 / 10) / 2),
    }
    for name, (policy_loss, entropy) in expected.items():
        config = GRPOConfig(entropy_coef=0.5, loss_aggregation=name, loss_norm_tokens=10)  # type: ignore[arg-type]
        output = grpo_loss(inputs, config)
        assert output.loss.item() == pytest.approx(policy_loss - 0.5 * entropy, abs=1e-6), name
    with pytest.raises(UserError, match=r"grpo\.loss_aggregation: unknown 'mean', choose from token-mean, "):
        GRPOConfig(loss_aggregation="mean")  # type: ignore[arg-type]


def test_advantages_by_hand() -> None:
    scores = torch.tensor([1.0, 3.0, 5.0, 5.0])
    std = math.sqrt(2.0)
    expected = torch.tensor([-1 / (std + 1e-6), 1 / (std + 1e-6), 0.0, 0.0])
    torch.testing.assert_close(group_advantages(scores, 2), expected)
    torch.testing.assert_close(group_advantages(scores, 2, scale_by_std=False), torch.tensor([-1.0, 1.0, 0.0, 0.0]))
    assert flat_group_share(scores, 2) == 0.5


@pytest.mark.parametrize("score", [3.7, 0.1, 1e6 / 3])
def test_equal_scores_teach_nothing_whatever_their_mean_rounds_to(score: float) -> None:
    assert torch.equal(group_advantages(torch.full((8,), score), 8), torch.zeros(8))


@pytest.mark.parametrize(
    ("scores", "size"), [(torch.ones(5), 2), (torch.ones(2, 2), 2), (torch.tensor([1.0, float("nan")]), 2)]
)
def test_scores_that_form_no_groups_are_refused(scores: torch.Tensor, size: int) -> None:
    with pytest.raises(ValueError, match="group_advantages"):
        group_advantages(scores, size)


def test_entropy_bonus_and_missing_reference_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]])
    inputs = LossInputs(
        logprobs, logprobs, None, torch.ones(1, 2), torch.tensor([2.0]), entropy=torch.tensor([[0.5, 1.5]])
    )
    output = grpo_loss(inputs, GRPOConfig(entropy_coef=0.1))
    assert output.loss.item() == pytest.approx(-2.0 - 0.1 * 1.0)
    assert "kl" not in output.stats


def test_k3_is_never_negative_and_clamped() -> None:
    assert k3_kl(torch.tensor([0.0]), torch.tensor([0.0]), 10.0).item() == 0
    assert k3_kl(torch.tensor([-9.0]), torch.tensor([0.0]), 10.0).item() == 10
    assert k3_kl(torch.tensor([0.0]), torch.tensor([-1.0]), 10.0).item() == pytest.approx(math.exp(-1))


def test_padding_changes_neither_loss_nor_gradient() -> None:
    torch.manual_seed(0)
    logprobs = torch.randn(2, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    clean = torch.where(mask.bool(), logprobs, 0.0)
    poisoned = torch.where(mask.bool(), logprobs, 1e30).requires_grad_()
    losses = []
    for values in (clean, poisoned):
        inputs = LossInputs(values, clean - 0.1, clean - 0.2, mask, torch.tensor([1.0, -1.0]))
        losses.append(grpo_loss(inputs, GRPOConfig()).loss)
    assert losses[0].item() == losses[1].item()
    losses[1].backward()
    assert poisoned.grad is not None
    assert bool((poisoned.grad[~mask.bool()] == 0).all())
