"""Log-probabilities and entropies in blocks of the vocabulary against plain log-softmax."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pixelthink.policies.logprobs import selected_logprobs

BLOCKS = [1, 4_000, 2**23]  # several blocks (of the least size, 256), two, one whose logits are kept


def plain(hidden: Tensor, head: nn.Module, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The textbook computation in float32."""
    table = head(hidden).float().log_softmax(dim=-1)
    return table.gather(1, token_ids[:, None])[:, 0], -(table.exp() * table).sum(dim=-1)


def case(rows: int = 7, width: int = 16, vocabulary: int = 1000, dtype: torch.dtype = torch.float32) -> tuple:
    torch.manual_seed(rows)
    head = nn.Linear(width, vocabulary, bias=False, dtype=dtype)
    head.weight.data.mul_(6)
    token_ids = torch.randint(0, vocabulary, (rows,))
    token_ids[:2] = torch.tensor([0, vocabulary - 1])[: len(token_ids[:2])]
    return torch.randn(rows, width, dtype=dtype, requires_grad=True), head, token_ids


def both_gradients(values: tuple[Tensor, Tensor | None], inputs: list[Tensor], entropy: bool = True) -> list[Tensor]:
    """Gradients of a scalar in which every value has its own weight."""
    weights = torch.linspace(-1, 2, len(values[0]))
    loss = (values[0] * weights).sum()
    if entropy:
        assert values[1] is not None
        loss = loss + (values[1] * weights.flip(0)).sum()
    return list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_value_and_gradient_with_entropy(rows: int, block: int) -> None:
    hidden, head, token_ids = case(rows)
    found = selected_logprobs(hidden, head, token_ids, with_entropy=True, block_logits=block)
    expected = plain(hidden, head, token_ids)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    inputs = [hidden, head.weight]
    for a, b in zip(both_gradients(found, inputs), both_gradients(expected, inputs), strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5


@pytest.mark.parametrize("block", BLOCKS)
def test_gradient_of_logprobs_with_and_without_entropy(block: int) -> None:
    hidden, head, token_ids = case()
    inputs = [hidden, head.weight]
    expected = both_gradients(plain(hidden, head, token_ids), inputs, entropy=False)
    alone = selected_logprobs(hidden, head, token_ids, block_logits=block)
    number = selected_logprobs(hidden, head, token_ids, with_entropy=True, block_logits=block)
    assert alone[1] is None
    assert number[1] is not None
    for values in (alone, number):
        for a, b in zip(both_gradients(values, inputs, entropy=False), expected, strict=True):
            assert float((a - b).norm() / b.norm()) < 1e-5


@pytest.mark.parametrize("block", BLOCKS)
def test_entropy_alone_carries_gradient(block: int) -> None:
    hidden, head, token_ids = case()
    entropy = selected_logprobs(hidden, head, token_ids, with_entropy=True, block_logits=block)[1]
    assert entropy is not None
    found = torch.autograd.grad(entropy.sum(), hidden)[0]
    expected = torch.autograd.grad(plain(hidden, head, token_ids)[1].sum(), hidden)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", BLOCKS)
def test_derivatives_by_finite_differences(block: int) -> None:
    hidden, head, token_ids = case(3, 5, 300, torch.float64)

    def function(states: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        own = nn.Linear(5, 300, bias=False, dtype=torch.float64)
        del own.weight
        own.weight = weight  # type: ignore[assignment]
        return selected_logprobs(states, own, token_ids, with_entropy=True, block_logits=block)

    assert torch.autograd.gradcheck(function, (hidden, head.weight.detach().requires_grad_()), fast_mode=True)


@pytest.mark.parametrize("block", BLOCKS)
def test_frozen_head_gets_no_gradient_and_tied_head_gets_both(block: int) -> None:
    _, head, token_ids = case()
    embedding = nn.Embedding(1000, 16)
    embedding.weight = head.weight
    selected_logprobs(embedding(token_ids) + 1, head, token_ids, block_logits=block)[0].sum().backward()
    found = head.weight.grad
    head.weight.grad = None
    plain(embedding(token_ids) + 1, head, token_ids)[0].sum().backward()
    torch.testing.assert_close(found, head.weight.grad, rtol=1e-4, atol=1e-5)

    head.weight.grad = None
    head.requires_grad_(False)
    states = torch.randn(7, 16, requires_grad=True)
    selected_logprobs(states, head, token_ids, block_logits=block)[0].sum().backward()
    assert states.grad is not None
    assert head.weight.grad is None


def test_no_gradient_is_recorded_where_none_is_wanted() -> None:
    hidden, head, token_ids = case()
    with torch.no_grad():
        assert not selected_logprobs(hidden, head, token_ids)[0].requires_grad


@pytest.mark.parametrize("block", BLOCKS)
def test_bfloat16_bound(block: int) -> None:
    """Logits are rounded once, to 8 bits: an error of at most 2⁻⁸ of the largest one on either side of the quotient."""
    hidden, head, token_ids = case(dtype=torch.bfloat16)
    found, entropy = selected_logprobs(hidden, head, token_ids, with_entropy=True, block_logits=block)
    exact_head = nn.Linear(16, 1000, bias=False)
    exact_head.weight.data = head.weight.data.float()
    expected, _ = plain(hidden.float(), exact_head, token_ids)
    largest = float(exact_head(hidden.float()).detach().abs().max())
    assert entropy is not None
    assert found.dtype == entropy.dtype == torch.float32
    assert float((found - expected).detach().abs().max()) <= 2**-7 * largest
    gradient = torch.autograd.grad(found.sum(), head.weight)[0]
    reference = torch.autograd.grad(expected.sum(), exact_head.weight)[0]
    assert gradient.dtype == torch.bfloat16
    assert float((gradient.float() - reference).norm() / reference.norm()) < 2**-5


def test_extreme_logits_stay_finite() -> None:
    head = nn.Linear(1, 600, bias=False)
    head.weight.data = torch.linspace(-1, 1, 600)[:, None] * 1e4
    hidden = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    for block in BLOCKS:
        values = selected_logprobs(hidden, head, torch.tensor([599, 599, 5]), with_entropy=True, block_logits=block)
        torch.testing.assert_close(values[0], plain(hidden, head, torch.tensor([599, 599, 5]))[0])
        assert all(bool(g.isfinite().all()) for g in both_gradients(values, [hidden, head.weight]))


def test_another_head_than_a_plain_linear_layer_is_called_as_it_is() -> None:
    hidden, head, token_ids = case()
    wrapped = nn.Sequential(head)
    found = selected_logprobs(hidden, wrapped, token_ids, with_entropy=True)
    for a, b in zip(found, plain(hidden, head, token_ids), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_no_tokens_at_all() -> None:
    hidden, head, _ = case()
    logprobs, entropy = selected_logprobs(hidden[:0], head, torch.zeros(0, dtype=torch.int64), with_entropy=True)
    assert entropy is not None
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
