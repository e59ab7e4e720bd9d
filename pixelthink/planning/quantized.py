"""Layers that hold what bitsandbytes' quantised layers hold, and compute nothing."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

NF4_BLOCK, SCALES_BLOCK = 64, 256
"""Weights that share a scale, and scales that share one of their own (double quantisation)."""


class ShapedLinear(nn.Linear):
    """In place of bitsandbytes' `Linear4bit` (NF4, double quantisation) or `Linear8bitLt`, under `ShapesOnly`.

    Args:
        layer: The layer that is quantised.
        quantization: How.
    """

    def __init__(self, layer: nn.Linear, quantization: Literal["nf4", "int8"]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.quantization = quantization
        self.dtype = layer.weight.dtype
        count = layer.weight.numel()
        if quantization == "nf4":
            scales = -(-count // NF4_BLOCK)
            held = -(-count // 2) + scales + 4 * -(-scales // SCALES_BLOCK)
        else:
            held = count + 4 * layer.out_features
        packed = torch.empty(-(-held // 4), dtype=torch.float32).view(torch.uint8)  # integers made anew would be real
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = _Linear.apply(inputs, self.out_features, self.dtype, self.quantization)
        return output if self.bias is None else output + self.bias


class _Linear(torch.autograd.Function):
    """A product with a weight that is unpacked for forward and for backward and kept by neither.

    For int8 the product itself is taken in int8 with int32 sums; its weight is unpacked for backward only.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, out_features: int, dtype: torch.dtype, quantization: str) -> Tensor:
        ctx.features, ctx.dtype, ctx.shape = (out_features, inputs.shape[-1]), dtype, inputs.shape
        if quantization == "nf4":
            return inputs.to(dtype) @ inputs.new_empty(ctx.features, dtype=dtype).T
        rounded = inputs.new_empty(inputs.shape, dtype=torch.float16).to(torch.int8)
        sums = inputs.new_empty((*inputs.shape[:-1], out_features), dtype=torch.float32)
        del rounded
        return sums.to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        weight = gradients[0].new_empty(ctx.features, dtype=ctx.dtype)
        return gradients[0].to(ctx.dtype) @ weight, None, None, None


def quantize_shapes(model: Any, quantization: Literal["nf4", "int8"]) -> None:
    """Replaces the linear layers of a Qwen-VL model's language part; vision tower, embeddings and head stay."""
    for module in list(model.model.language_model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, ShapedLinear(child, quantization))
