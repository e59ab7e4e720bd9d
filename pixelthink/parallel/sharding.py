"""FSDP2: a model's weights in shards, and the two ways to compute with them.

`shard` shards each decoder layer and vision block, and the rest of the model as one more piece. Then

- `run_as_forward(model, function)` runs a function as the model's forward: each piece is gathered when it is needed and
  freed after that. All processes have to make the same passes. Training uses it.
- `unsharded(model)` is a context with all weights on every process. No process waits for another inside, so that each
  may decode its own number of tokens and score its own number of micro-batches. Rollouts, evaluation and scoring
  without gradient use it.

Both do nothing to a model that is not sharded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from pixelthink.errors import UserError

Result = TypeVar("Result")
Precision = Literal["float32", "bfloat16", "float16"]

ENTRY = "_pixelthink_run"
SHARDING = "_pixelthink_sharding"
IS_UNSHARDED = "_pixelthink_is_unsharded"


@dataclass(frozen=True)
class Sharding:
    """How FSDP2 shards a model.

    Attributes:
        reshard_after_forward: Free a layer's gathered weights after its forward and gather them again for its backward,
            which needs the least memory. Otherwise they stay until the backward, with a third less communication.
        param_dtype: Precision in which weights are gathered and computed with; null takes that of the shards, which the
            optimizer updates. A released recipe's steps of 1e-6 vanish in bfloat16 weights, so it has float32 shards
            and bfloat16 here.
        reduce_dtype: Precision in which gradients are summed over processes; null takes that of `param_dtype`.
        cpu_offload: Keep shards, gradients and optimizer state in main memory.
    """

    reshard_after_forward: bool = True
    param_dtype: Precision | None = None
    reduce_dtype: Precision | None = "float32"
    cpu_offload: bool = False


def shard(model: nn.Module, sharding: Sharding, mesh: DeviceMesh) -> None:
    """Shards a model in place, layer by layer. Gradients are summed over processes, not averaged.

    Args:
        model: A transformers model with its adapters; it can be neither copied nor changed afterwards.
        sharding: How to shard it.
        mesh: The processes that share it, one-dimensional.

    Raises:
        UserError: the class of the model does not name its layers, or the model is quantised.
    """
    kinds = {kind for part in model.modules() for kind in (getattr(part, "_no_split_modules", None) or ())}
    blocks = [part for part in model.modules() if type(part).__name__ in kinds]
    if not blocks:
        raise UserError(
            f"{type(model).__name__} cannot be sharded: `_no_split_modules` of its class does not name its layers"
        )
    if integers := [name for name, p in model.named_parameters() if not p.is_floating_point()]:
        raise UserError(f"quantised weights cannot be sharded ({integers[0]}): use the ddp strategy for them")
    offload = CPUOffloadPolicy() if sharding.cpu_offload else OffloadPolicy()
    param, reduce = (name and getattr(torch, name) for name in (sharding.param_dtype, sharding.reduce_dtype))
    precision = MixedPrecisionPolicy(param_dtype=param, reduce_dtype=reduce)
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": precision, "offload_policy": offload}
    for block in blocks:
        fully_shard(block, reshard_after_forward=sharding.reshard_after_forward, **options)
    fully_shard(model, **options)
    for part in pieces(model):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    setattr(model, SHARDING, sharding)
    setattr(model, ENTRY, MethodType(lambda model, function: function(), model))
    register_fsdp_forward_method(model, ENTRY)


def pieces(model: nn.Module) -> list[FSDPModule]:
    """Returns the parts of a model that are gathered together, with the model itself; none if it is not sharded."""
    return [part for part in model.modules() if isinstance(part, FSDPModule)]


def is_sharded(model: nn.Module) -> bool:
    """Returns whether `shard` was called on a model."""
    return hasattr(model, SHARDING)


def run_as_forward(model: nn.Module, function: Callable[[], Result]) -> Result:
    """Runs a function as the model's forward, so that sharded weights are gathered when it calls parts of the model.

    Args:
        model: A model; where it is not sharded the function is just called.
        function: Returns tensors, or tuples of them, from which the backward starts.
    """
    run: Callable[[Callable[[], Result]], Result] | None = getattr(model, ENTRY, None)
    return function() if run is None else run(function)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Holds all weights of a sharded model on every process; all processes enter together.

    Weights are in the sharding's `param_dtype`. No backward may run inside. It may be entered again inside, which
    does nothing.
    """
    sharding: Sharding | None = getattr(model, SHARDING, None)
    if sharding is None or getattr(model, IS_UNSHARDED, False):
        yield
        return
    parts = pieces(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
    run_as_forward(model, lambda: None)  # torch prepares streams and names in the first forward of the root
    for part in parts:
        part.unshard()
    setattr(model, IS_UNSHARDED, True)
    try:
        yield
    finally:
        setattr(model, IS_UNSHARDED, False)
        for part in parts:
            part.set_reshard_after_forward(sharding.reshard_after_forward and part is not model, recurse=False)
            part.reshard()


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Returns all weights and buffers of a model by name, unsharded; all processes call it together.

    Those of a sharded model are gathered into the first process's main memory; the others get an empty dictionary.
    """
    if not is_sharded(model):
        return model.state_dict()
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))  # type: ignore[return-value]
