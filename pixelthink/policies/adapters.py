"""Low-rank adapters (LoRA) of a policy, by peft, and what the rest of the package needs to know of them.

An adapter is put *into* the transformers model (`model.add_adapter`), which so keeps its class, its `model.model` and
its `lm_head`: scoring, sampling and image sharing work on an adapted model as on any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixelthink.errors import FileError, MissingFileError, MissingPackageError, UserError, brief
from pixelthink.parallel.collectives import full_tensor
from pixelthink.policies.quantization import dequantized_weight

ADAPTER = "default"
"""Name of the adapter inside the model, peft's own default."""
PREFIX = "base_model.model."
"""What peft puts before the names of a saved adapter's weights."""


@dataclass(frozen=True)
class LoRA:
    """A low-rank adapter of the language model: W·x becomes W·x + (alpha / rank) · B·A·x, and only A and B are trained.

    Attributes:
        rank: Rows of A and columns of B.
        alpha: Scale of the adapter's part, divided by `rank`.
        dropout: Share of the inputs of A that are dropped in training; sampling and the reference never drop any.
        target_modules: Names of the linear layers to adapt, in each block of the language model.
        init_from: Folder of an exported adapter to go on from; None starts with B = 0, so that nothing is changed yet,
            and a random A that is a function of the run's seed.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    init_from: str | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1 or not self.target_modules:
            raise UserError(
                "policy.adapter: rank must be at least 1, alpha positive, dropout in [0, 1), target_modules not empty"
            )


def add_adapter(model: Any, lora: LoRA, base: str) -> None:
    """Puts an adapter into a transformers model and freezes all other weights.

    Args:
        model: A Qwen-VL model; its language part is `model.model.language_model`.
        lora: What to add. Its weights are float32 whatever the model's precision, since small steps vanish in less.
        base: Folder or hub id of the model without adapter; an exported adapter names it.

    Raises:
        UserError: the language model has no layer of a target's name, or `init_from` is another adapter; one line.
        FileError: there is no adapter at `init_from`, or it is damaged; one line.
        MissingPackageError: peft is missing; one line.
    """
    # the layers of bitsandbytes are subclasses of nn.Linear
    layers = {
        name.rpartition(".")[2] for name, m in model.model.language_model.named_modules() if isinstance(m, nn.Linear)
    }
    if unknown := sorted(set(lora.target_modules) - layers):
        raise UserError(
            f"policy.adapter.target_modules: the language model has no linear layer {unknown[0]!r}; it has "
            f"{', '.join(sorted(layers))}"
        )
    if find_spec("peft") is None:
        raise MissingPackageError("policy.adapter needs peft: pip install peft")
    from peft import LoraConfig

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides it, so that a fraction does as well
        lora_dropout=lora.dropout,
        target_modules=rf".*language_model\..*\.({'|'.join(lora.target_modules)})",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())  # whatever drew random numbers before, and the same on every process
        model.add_adapter(config, ADAPTER)
    model.peft_config[ADAPTER].base_model_name_or_path = str(Path(base).resolve()) if Path(base).exists() else base
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter_weight(name))
        if is_adapter_weight(name):
            parameter.data = parameter.data.float()
    if lora.init_from is not None:
        _load_weights(model, lora, Path(lora.init_from))


def _load_weights(model: Any, lora: LoRA, folder: Path) -> None:
    """Replaces the adapter's weights by those of an exported one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / "adapter_model.safetensors").is_file() or not (folder / "adapter_config.json").is_file():
        raise MissingFileError(f"policy.adapter.init_from: there is no adapter in {str(folder)!r}")
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "adapter_model.safetensors")
        rank, alpha = config["r"], config["lora_alpha"]
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        raise FileError(
            f"policy.adapter.init_from: the adapter in {str(folder)!r} is damaged ({brief(error)})"
        ) from None
    if (rank, alpha) != (lora.rank, lora.alpha):
        raise UserError(
            f"policy.adapter.init_from: the adapter in {str(folder)!r} has rank {rank} and alpha "
            f"{alpha}, policy.adapter has {lora.rank} and {lora.alpha}"
        )
    saved = {name.removeprefix(PREFIX): weight for name, weight in weights.items()}
    own = {n.replace(f".{ADAPTER}.", "."): p for n, p in model.named_parameters() if is_adapter_weight(n)}
    shared = {name for name in own.keys() & saved.keys() if own[name].shape == saved[name].shape}
    if different := sorted((own.keys() | saved.keys()) - shared):
        raise UserError(
            f"policy.adapter.init_from: the adapter in {str(folder)!r} is another one: {len(different)} of its weights "
            f"do not fit, {different[0]!r} first"
        )
    for name, parameter in own.items():
        parameter.data.copy_(saved[name])


def write_adapter(model: Any, folder: Path) -> None:
    """Writes the adapter in peft's format, sharded weights gathered."""
    from safetensors.torch import save_file

    named = {n: full_tensor(p) for n, p in model.named_parameters() if is_adapter_weight(n)}
    weights = {f"{PREFIX}{n.replace(f'.{ADAPTER}.', '.')}": weight.cpu().contiguous() for n, weight in named.items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    model.peft_config[ADAPTER].save_pretrained(folder)


def is_adapter_weight(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return f".lora_A.{ADAPTER}." in name or f".lora_B.{ADAPTER}." in name


def has_adapter(model: nn.Module) -> bool:
    """Whether an adapter was put into the model."""
    return any(is_adapter_weight(name) for name, _ in model.named_parameters())


@contextmanager
def adapter_off(model: Any) -> Iterator[nn.Module]:
    """The model as it was before an adapter was put into it, for as long as the context lasts."""
    model.disable_adapters()
    try:
        yield model
    finally:
        model.enable_adapters()


def base_weights(model: nn.Module, merged: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Every weight under the name and in the precision that it would have without adapter and quantisation.

    One whole tensor lives at a time; a sharded one is gathered, in which every process must take part.

    Args:
        model: An adapted or quantised model, or any other.
        merged: Add the adapter's part to the weights, in float32 before it is rounded to their precision.
    """
    for name, parameter in model.named_parameters():
        if is_adapter_weight(name):
            continue
        owner_name, _, leaf = name.rpartition(".")
        weight = full_tensor(dequantized_weight(model.get_submodule(owner_name)) if leaf == "weight" else parameter)
        layer_name, _, last = owner_name.rpartition(".")
        if last == "base_layer":
            layer: Any = model.get_submodule(layer_name)
            if merged and leaf == "weight":
                a, b = (full_tensor(part[ADAPTER].weight).float() for part in (layer.lora_A, layer.lora_B))
                weight = (weight.float() + layer.scaling[ADAPTER] * (b @ a)).to(weight.dtype)
            name = f"{layer_name}.{leaf}"
        yield name, weight
