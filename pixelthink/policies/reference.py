"""The reference swap point: against which weights the policy's drift (KL) is measured, and where these are kept."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from torch import nn

from pixelthink.errors import UserError
from pixelthink.policies.adapters import adapter_off, has_adapter
from pixelthink.policies.base import PolicyBackbone


class Reference(ABC):
    """The weights that the policy started from, kept in one way or another. Never in checkpoints: it can be rebuilt."""

    @abstractmethod
    def build(self, backbone: PolicyBackbone, policy: nn.Module) -> nn.Module | None:
        """Makes the reference of a policy that has just been loaded.

        Returns:
            What the trainer shall place beside the policy, sharded as the policy is; None where there is no such thing.

        Raises:
            UserError: this policy cannot have such a reference; one line.
        """

    @abstractmethod
    def weights(self, policy: nn.Module) -> AbstractContextManager[nn.Module]:
        """A context that gives the reference as a model on the policy's device."""


class FrozenCopy(Reference):
    """A second copy of the policy as it was loaded.

    Args:
        offload: Keep it in the CPU's memory and move it to the policy's device for its pass in each step.
        dtype: Precision of its weights; None takes the policy's. Weights that come from a bfloat16 checkpoint lose
            nothing in bfloat16, as the released recipes keep their references.
    """

    def __init__(self, offload: bool = False, dtype: Literal["float32", "bfloat16", "float16"] | None = None) -> None:
        self.offload = offload
        self.dtype = dtype

    def build(self, backbone: PolicyBackbone, policy: nn.Module) -> nn.Module | None:
        self._copy = self._load(backbone, policy).eval().requires_grad_(False)
        if self.dtype is not None:
            for parameter in self._copy.parameters():  # and not the buffers: rotary frequencies stay as they are
                parameter.data = parameter.data.to(getattr(torch, self.dtype))
        return None if self.offload else self._copy

    def _load(self, backbone: PolicyBackbone, policy: nn.Module) -> nn.Module:
        return copy.deepcopy(policy)

    @contextmanager
    def weights(self, policy: nn.Module) -> Iterator[nn.Module]:
        if not self.offload:
            yield self._copy
            return
        self._copy.to(next(policy.parameters()).device)
        try:
            yield self._copy
        finally:
            self._copy.to("cpu")


class QuantizedCopy(FrozenCopy):
    """A second copy of the policy as it was loaded, its language part in 4 or 8 bits.

    Its log-probabilities are those of rounded weights, so that KL does not start at 0.

    Args:
        bits: 4 (NF4) or 8 (int8).
        offload: Keep it in the CPU's memory and move it to the policy's device for its pass in each step.
    """

    def __init__(self, bits: Literal[4, 8] = 4, offload: bool = False) -> None:
        super().__init__(offload)
        self.bits = bits

    def _load(self, backbone: PolicyBackbone, policy: nn.Module) -> nn.Module:
        return backbone.load_quantized("nf4" if self.bits == 4 else "int8")


class AdapterOff(Reference):
    """The policy itself with its adapter switched off: costs no memory, and is exactly what the adapter was put into.

    Where `policy.adapter.init_from` continues an adapter, this is the model without it, not the policy at the start.
    """

    def build(self, backbone: PolicyBackbone, policy: nn.Module) -> nn.Module | None:
        if not has_adapter(policy):
            raise UserError(
                "model.reference: AdapterOff needs a policy with an adapter; a fully trained one has none to switch "
                "off; set model.policy.adapter, or model.reference to FrozenCopy"
            )
        return None

    @contextmanager
    def weights(self, policy: nn.Module) -> Iterator[nn.Module]:
        with adapter_off(policy):
            yield policy
