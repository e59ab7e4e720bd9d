"""What the processes of a run do together in a training step, with any strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Piece = TypeVar("Piece")


class Processes:
    """The processes of a run: one, several with a copy of the model each (DDP), or several that share it (FSDP2).

    Gradients are *summed*: each process computes its part of a loss that is normalised by a count over all processes
    (`docs/decisions/0003`). So the sum is the gradient that one process would have computed from all samples.

    Args:
        strategy: The trainer's strategy.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.count: int = getattr(strategy, "world_size", 1)
        self.share_weights = isinstance(strategy, ModelParallelStrategy)

    def sum(self, value: Tensor) -> Tensor:
        """Returns the sum of a tensor over all processes."""
        return self.strategy.reduce(value.clone(), reduce_op="sum") if self.count > 1 else value

    def pad_micro_batches(self, passes: Sequence[Piece], empty: Callable[[Piece], Piece]) -> list[Piece]:
        """Returns this process's passes; where weights are shared, as many as the process with most of them makes.

        Args:
            passes: What this process has to compute, at least one.
            empty: Makes a pass that changes nothing from the last pass.
        """
        if not self.share_weights or self.count == 1:
            return list(passes)
        most = torch.tensor(len(passes), device=self.strategy.root_device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return [*passes, *(empty(passes[-1]) for _ in range(int(most) - len(passes)))]

    def own_gradients(self) -> AbstractContextManager[None]:
        """Keeps DDP from averaging at each backward pass, since processes make different numbers of them."""
        model = self.strategy.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def add_up_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sums the gradients over all processes, once for all passes of a step; FSDP2 does so in each backward.

        A parameter that no process used keeps no gradient; one that some used has one on all.
        """
        if self.count == 1 or self.share_weights:
            return
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        waiting = []
        for parameter, is_used in zip(parameters, used.tolist(), strict=True):
            if is_used:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                waiting.append(dist.all_reduce(parameter.grad, async_op=True))
        for work in waiting:
            work.wait()


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Returns the Euclidean norm of all gradients, a scalar; a `DTensor` where they are sharded, see `full_tensor`."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
