"""Bytes are counted while tensors live, and shapes are computed with as values are."""

from __future__ import annotations

import gc

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor

from pixelthink.planning.tracking import Ledger, ShapesOnly


def test_the_peak_is_where_most_lives_at_once() -> None:
    with Ledger() as ledger, ledger.watch() as peak:
        a = torch.zeros(1000)
        b = a + 1
        view = b[:10]
        del b  # its storage lives on in the view
        c = torch.zeros(500)
        del a, view
        d = torch.zeros(250)
    gc.collect()
    assert peak().total() == 4 * 2500
    assert ledger.live.total() == 4 * 750
    assert ledger.most["activations"] == 4 * 2500
    del c, d
    assert ledger.live.total() == 0


def test_tensors_are_counted_under_what_they_are_for() -> None:
    outside = torch.zeros(100)
    with Ledger({"unit/test_memory_tracking.py": "mine"}) as ledger:
        inside = torch.zeros(10)
        ledger.label([outside, inside.view(2, 5)], "weights")
        other = torch.zeros(5)
        assert dict(ledger.live) == {"mine": 20, "weights": 440}
        del inside, other
        assert ledger.live["weights"] == 400


def test_an_operation_in_place_holds_nothing_new() -> None:
    with Ledger() as ledger:
        a = torch.zeros(100)
        a.add_(1).relu_()
        assert ledger.live.total() == 400


def test_shapes_only_keeps_the_values_of_integers() -> None:
    with ShapesOnly():
        weights = torch.zeros(8, 4)
        ids = torch.tensor([[1, 2], [3, 7]])
        assert isinstance(weights, FakeTensor)
        assert not isinstance(ids, FakeTensor)
        found = torch.nn.functional.embedding(ids, weights)
        assert isinstance(found, FakeTensor)
        assert found.shape == (2, 2, 4)
        assert ids.max().item() == 7
        assert torch.arange(3, dtype=torch.float32).sum().item() == 3
        assert found[ids > 2].shape == (2, 4)  # whose number depends on the integers' values
        with pytest.raises(DataDependentOutputException):
            found.sum().item()


def test_shapes_only_counts_what_a_real_layer_holds() -> None:
    def step() -> int:
        layer = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
        layer(torch.ones(32, 64)).square().sum().backward()
        return ledger.peak.total()

    with Ledger() as ledger:
        real = step()
    with ShapesOnly(), Ledger() as ledger:
        assert step() == real
    parameters, widest = 2 * 64 * 256 + 64 + 256, 32 * 256
    assert 4 * 2 * parameters < real < 4 * (2 * parameters + 4 * widest)  # weights, gradients and some activations
