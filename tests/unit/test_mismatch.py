"""Rollout correction and mismatch statistics, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pixelthink.grpo.loss import GRPOConfig, LossInputs, grpo_loss
from pixelthink.grpo.mismatch import mismatch_stats, mismatch_sums, rollout_weights

RATIOS = torch.tensor([[0.5, 3.0, 7.0], [1.0, 1.5, 9.0]])
MASK = torch.tensor([[True, True, False], [True, True, True]])


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        ("none", [1, 1, 1, 1, 1]),
        ("token_truncate", [0.5, 2, 1, 1.5, 2]),
        ("token_mask", [0.5, 0, 1, 1.5, 0]),
        ("sequence_truncate", [1.5, 1.5, 2, 2, 2]),
        ("sequence_mask", [1.5, 1.5, 0, 0, 0]),
    ],
)
def test_weights_by_hand(correction: str, expected: list[float]) -> None:
    weights = rollout_weights(RATIOS.log(), MASK, correction, cap=2.0)  # type: ignore[arg-type]
    torch.testing.assert_close(weights[MASK], torch.tensor(expected, dtype=torch.float32))


def inputs(**changed: torch.Tensor) -> LossInputs:
    old = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, -1.5, -2.5]])
    values = {"logprobs": old.clone(), "old_logprobs": old, "rollout_logprobs": old - RATIOS.log(), **changed}
    return LossInputs(ref_logprobs=None, mask=MASK, advantages=torch.tensor([1.0, -2.0]), **values)


@pytest.mark.parametrize(
    ("correction", "loss"),
    [
        ("none", (-2 + 6) / 5),
        ("token_truncate", (-2.5 + 2 * 4.5) / 5),
        ("token_mask", (-0.5 + 2 * 2.5) / 5),
        ("sequence_truncate", (-3.0 + 2 * 6.0) / 5),
        ("sequence_mask", -3.0 / 5),
    ],
)
def test_the_policy_loss_is_weighed(correction: str, loss: float) -> None:
    output = grpo_loss(inputs(), GRPOConfig(kl_coef=0, rollout_correction=correction))  # type: ignore[arg-type]
    assert output.loss.item() == pytest.approx(loss, rel=1e-6)


def test_weights_carry_no_gradient_and_padding_does_not_count() -> None:
    logprobs = inputs().old_logprobs.clone().requires_grad_()
    wild = inputs().rollout_logprobs.clone()  # type: ignore[union-attr]
    wild[0, 2] = -1e9
    config = GRPOConfig(kl_coef=0, rollout_correction="token_truncate")
    grpo_loss(inputs(logprobs=logprobs, rollout_logprobs=wild), config).loss.backward()
    expected = torch.tensor([[-0.5, -2.0, 0.0], [2.0, 3.0, 4.0]]) / 5  # −advantage · weight / tokens, at ratio 1
    torch.testing.assert_close(logprobs.grad, expected)


def test_the_correction_is_of_the_policy_that_the_step_started_from() -> None:
    moved = inputs().old_logprobs + 0.1  # within the trust region: the policy's own ratio multiplies
    plain = grpo_loss(inputs(logprobs=moved), GRPOConfig(kl_coef=0, rollout_correction="token_truncate")).loss
    expected = math.exp(0.1) * (-2.5 + 2 * 4.5) / 5
    assert plain.item() == pytest.approx(expected, rel=1e-5)


def test_a_correction_without_the_rollouts_logprobs_is_refused() -> None:
    without = LossInputs(torch.zeros(1, 2), torch.zeros(1, 2), None, torch.ones(1, 2), torch.ones(1))
    with pytest.raises(ValueError, match=r"grpo\.rollout_correction: token_mask needs"):
        grpo_loss(without, GRPOConfig(kl_coef=0, rollout_correction="token_mask"))
    with pytest.raises(ValueError, match="rollout_correction_cap"):
        GRPOConfig(rollout_correction_cap=0.5)


def test_statistics_by_hand() -> None:
    ratios = torch.tensor([0.5, 1.0, 1.05, 2.0])
    stats = mismatch_stats(mismatch_sums(ratios.log()))
    assert stats["log_ratio_mean"] == pytest.approx(math.log(1.05) / 4, rel=1e-6)
    assert stats["outside"] == 0.5
    assert stats["effective_sample_size"] == pytest.approx(4.55**2 / (4 * (0.25 + 1 + 1.05**2 + 4)), rel=1e-6)
    parts = mismatch_sums(ratios[:1].log()) + mismatch_sums(ratios[1:].log())
    assert mismatch_stats(parts) == pytest.approx(stats)


def test_equal_distributions_are_one_effective_sample_each() -> None:
    stats = mismatch_stats(mismatch_sums(torch.zeros(7)))
    assert stats == {"log_ratio_mean": 0, "outside": 0, "effective_sample_size": 1}
