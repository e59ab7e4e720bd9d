"""Sharded models of both families score and learn as whole ones; here in a group of one process.

Several processes: `tests/integration/test_several_processes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from pixelthink.parallel.sharding import Sharding, full_state, is_sharded, pieces, run_as_forward, shard, unsharded
from tests.tiny_models import FAMILIES, random_prompt, random_tokens, relative_difference, tiny_model


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    meet = tmp_path_factory.mktemp("group") / "meet"
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def case() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    prompts = [random_prompt(grids, generator) for grids in ([(4, 6)], [(4, 4)])]
    completions = [random_tokens(length, generator) for length in (5, 3, 7)]
    return {"prompts": prompts, "completions": completions, "prompt_index": [0, 0, 1]}


def learned(model: nn.Module, logprobs: Tensor) -> dict[str, Tensor]:
    logprobs.square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in grads.items()}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_model_scores_and_learns_as_a_whole_one(family: str, tied: bool, mesh: Any) -> None:
    backbone, model = tiny_model(family, tied=tied)
    expected = backbone.score(model, **case()).logprobs
    gradients = learned(model, expected)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}

    shard(model, Sharding(), mesh)
    assert is_sharded(model)
    assert len(pieces(model)) == 2 + 2 + 1  # decoder layers, vision blocks, the rest
    assert all(isinstance(p, DTensor) for p in model.parameters())
    found = run_as_forward(model, lambda: backbone.score(model, **case()).logprobs)
    torch.testing.assert_close(found, expected)
    assert relative_difference(learned(model, found), gradients) < 1e-5
    with torch.no_grad(), unsharded(model), unsharded(model):
        assert not any(isinstance(p, DTensor) for p in model.parameters())
        torch.testing.assert_close(backbone.score(model, **case()).logprobs, expected.detach())
    assert all(isinstance(p, DTensor) for p in model.parameters())
    again = run_as_forward(model, lambda: backbone.score(model, **case()).logprobs)
    assert relative_difference(learned(model, again), gradients) < 1e-5
    assert full_state(model).keys() == state.keys()
    assert all(torch.equal(weight, state[name]) for name, weight in full_state(model).items())
    assert {name for name, _ in backbone.sync_weights(model)} <= state.keys()
    assert all(torch.equal(weight, state[name]) for name, weight in backbone.sync_weights(model))


def test_a_frozen_tower_stays_frozen(mesh: Any) -> None:
    backbone, model = tiny_model("qwen2.5", freeze_vision_tower=True)
    shard(model, Sharding(param_dtype="bfloat16"), mesh)
    found = learned(model, run_as_forward(model, lambda: backbone.score(model, **case()).logprobs))
    assert found
    assert not any("visual" in name for name in found)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}


def test_models_that_are_not_sharded_are_left_alone() -> None:
    layer = nn.Linear(2, 2)
    with unsharded(layer):
        assert run_as_forward(layer, lambda: 3) == 3
    assert not is_sharded(layer)
    assert full_state(layer).keys() == {"weight", "bias"}


def test_what_cannot_be_sharded_is_refused(mesh: Any) -> None:
    with pytest.raises(ValueError, match="Linear cannot be sharded"):
        shard(nn.Linear(2, 2), Sharding(), mesh)
    _, model = tiny_model("qwen2.5")
    model.lm_head.weight = nn.Parameter(torch.zeros(97, 48, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"quantised weights cannot be sharded \(lm_head.weight\)"):
        shard(model, Sharding(), mesh)
