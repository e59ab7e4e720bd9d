"""A training step with shapes only: what it would hold."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pixelthink.errors import UserError
from pixelthink.planning.shapes import model_without_weights
from pixelthink.planning.step import FILES, Phases, StepSize, run_step
from pixelthink.planning.tracking import Ledger, ShapesOnly
from pixelthink.policies.base import PolicyBackbone
from pixelthink.policies.quantization import Quantization
from pixelthink.policies.reference import FrozenCopy, QuantizedCopy
from pixelthink.rollouts.base import RolloutEngine
from pixelthink.training.grpo_module import GRPOModule
from pixelthink.training.learner import trainable_parameters

EIGHT_BIT_FROM, EIGHT_BIT_BLOCK = 4096, 256
"""bitsandbytes keeps states of smaller parameters in float32, and a float32 scale for each block of larger ones'."""


def simulate_step(
    module: GRPOModule,
    engine: RolloutEngine,
    size: StepSize,
    *,
    autocast: AbstractContextManager[Any] | None = None,
    dtype: torch.dtype | None = None,
    on_gpu: bool = False,
) -> tuple[Phases, Counter[str]]:
    """What a process by itself would hold in a step of a run that has been going on for a while.

    Args:
        module: Without weights; keeps a model without values.
        engine: The run's.
        size: How much there is to do.
        autocast: The precision's context.
        dtype: What the precision converts the weights to; None leaves them.
        on_gpu: Whether torch would choose what it chooses for parameters on a GPU.

    Returns:
        Bytes by purpose at the peak of each phase, and the most that each purpose ever had in any of them.
    """
    ledger = Ledger(FILES)
    with warnings.catch_warnings(), ShapesOnly(), ledger:
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # by copy.deepcopy
        load(module, ledger, dtype)
        optimizer = optimizer_with_states(module, ledger, on_gpu)
        ledger.most.clear()
        return run_step(module, engine, optimizer, size, ledger, autocast), ledger.most


def load(module: GRPOModule, ledger: Ledger, dtype: torch.dtype | None = None) -> None:
    """Gives the module its policy and reference as `configure_model` and the precision would."""
    module.policy = model_without_weights(module.answerer.backbone)
    if dtype is not None:
        for tensor in stored(module.policy):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
    ledger.label(stored(module.policy), "weights")
    if module.grpo.kl_coef > 0:
        if isinstance(module.reference, QuantizedCopy):
            module.reference = _QuantizedShape(module.reference)
        module.reference_model = module.reference.build(module.answerer.backbone, module.policy)
        with module.reference.weights(module.policy) as model:
            if model is not module.policy:
                ledger.label(stored(model), "reference")
    for parameter in trainable_parameters(module.policy):
        parameter.register_post_accumulate_grad_hook(lambda p: ledger.label([p.grad], "gradients"))


class _QuantizedShape(FrozenCopy):
    """Shapes in place of a `QuantizedCopy`."""

    def __init__(self, reference: QuantizedCopy) -> None:
        super().__init__(reference.offload)
        self.quantization: Quantization = "nf4" if reference.bits == 4 else "int8"

    def _load(self, backbone: PolicyBackbone, policy: nn.Module) -> nn.Module:
        return model_without_weights(backbone, self.quantization)


def stored(model: nn.Module) -> Iterable[Tensor]:
    """Parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def optimizer_with_states(module: GRPOModule, ledger: Ledger, on_gpu: bool) -> Optimizer:
    """The module's optimizer as it is after its first step.

    Raises:
        UserError: its step cannot be taken with shapes only, so its states are not known; one line that names it.
    """
    assert module.policy is not None
    parameters = list(trainable_parameters(module.policy))
    optimizer = module.learner.optimizer(parameters)
    if type(optimizer).__module__.startswith("bitsandbytes"):
        return EightBit(parameters, ledger, paged="Paged" in type(optimizer).__name__)
    for group in optimizer.param_groups:  # what torch chooses by itself for parameters on a GPU
        if on_gpu and group.get("foreach", True) is None and not group.get("fused"):
            group["foreach"] = True
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step()
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"model.optimizer: cannot tell how much {type(optimizer).__name__} holds: {reason}") from None
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    ledger.label(states, "optimizer")
    optimizer.zero_grad()
    return optimizer


class EightBit(Optimizer):
    """Holds what bitsandbytes' 8-bit AdamW holds, and steps without computing anything.

    Args:
        parameters: What is trained.
        ledger: Where the states are written down.
        paged: The states lie in memory that moves to the host when the GPU is full, so they are not counted.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ledger: Ledger, paged: bool = False) -> None:
        super().__init__(parameters, {})
        self.states: list[Tensor] = []
        for parameter in [] if paged else self.param_groups[0]["params"]:
            count = parameter.numel()
            bytes_each = 4 * count if count < EIGHT_BIT_FROM else count + 4 * -(-count // EIGHT_BIT_BLOCK)
            self.states += [torch.empty(bytes_each, dtype=torch.uint8, device="meta") for _ in range(2)]
        ledger.label(self.states, "optimizer")

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing: the real one works block by block."""
