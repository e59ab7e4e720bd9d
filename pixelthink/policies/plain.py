"""Turns a trained policy into an ordinary transformers model: adapters merged, quantised weights unpacked."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pixelthink.policies.adapters import base_weights, has_adapter
from pixelthink.policies.quantization import is_quantized


def plain_config(model: Any) -> Any:
    """The configuration of a transformers model without quantisation, with the name of its class."""
    values = model.config.to_dict()
    values.pop("quantization_config", None)
    values["architectures"] = [_class_of(model).__name__]
    return type(model.config).from_dict(values)


def plain_model(model: Any) -> Any:
    """The model itself where it has neither adapter nor quantised layers; else one with merged and unpacked weights.

    It needs no GPU, and memory for one whole model in the precision of the weights.
    """
    if not has_adapter(model) and not is_quantized(model):
        return model
    with torch.device("meta"):
        plain = _class_of(model)(plain_config(model))
    weights = {name: weight.cpu() for name, weight in base_weights(model)}
    missing, unexpected = plain.load_state_dict(weights, strict=False, assign=True)
    plain.tie_weights()  # a missing weight that is tied to another has that one's value
    if wrong := [*unexpected, *(name for name in missing if plain.get_parameter(name).is_meta)]:
        raise RuntimeError(f"the merged model and its class disagree on {len(wrong)} weights, {wrong[0]!r} first")
    plain.generation_config = model.generation_config
    return plain


def _class_of(model: nn.Module) -> type[Any]:
    """The transformers class of a model; sharding gives a module a class of its own."""
    classes = (c for c in type(model).__mro__ if c.__module__.startswith("transformers."))
    return next(classes, type(model))
