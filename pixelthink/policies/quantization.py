"""Models whose language part is kept in 4 or 8 bits, by bitsandbytes through transformers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pixelthink.errors import MissingPackageError

Quantization = Literal["none", "nf4", "int8"]

UNQUANTIZED_MODULES = ("model.visual", "lm_head")
"""Modules that keep their precision: the vision tower, which is small and would lose accuracy, and the head."""


def quantization_config(kind: Quantization, dtype: torch.dtype) -> Any:
    """What transformers takes as `quantization_config`; None for "none".

    Args:
        kind: "nf4" keeps weights in 4 bits (QLoRA's type, with its double quantisation of the scales) and computes in
            `dtype` from weights that it unpacks; "int8" keeps and multiplies in 8 bits, activations included.
        dtype: Precision of the computation and of all that is not quantised.

    Raises:
        MissingPackageError: bitsandbytes is missing; one line.
    """
    if kind == "none":
        return None
    if find_spec("bitsandbytes") is None:
        raise MissingPackageError(f"policy.quantization {kind!r} needs bitsandbytes: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    skipped = {"llm_int8_skip_modules": list(UNQUANTIZED_MODULES)}
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, **skipped)
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return BitsAndBytesConfig(load_in_4bit=True, **nf4, **skipped)


def use_one_kernel(model: nn.Module) -> None:
    """Makes 4-bit layers compute the same numbers in training and in evaluation, which they do not by themselves.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a layer at its first evaluation for a kernel that computes in
    bfloat16; rollouts would then come from another model than the one that is trained (measured: logits off by 0.04).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            cast("Any", module).support_avx512bf16_for_cpu = False


def is_quantized(model: nn.Module) -> bool:
    """Whether a transformers model was loaded in 4 or 8 bits."""
    return bool(getattr(model, "is_quantized", False))


def dequantized_weight(layer: nn.Module) -> Tensor:
    """The weight that a layer multiplies by, in the precision that it has after unpacking."""
    weight: Any = layer.weight
    if type(weight).__name__ not in ("Params4bit", "Int8Params"):
        return weight
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer)
