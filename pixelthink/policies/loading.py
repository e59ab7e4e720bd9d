"""Checks of `policy.path` before weights are read: is it a checkpoint, and of which model family?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pixelthink.errors import FileError, MissingFileError, MissingPackageError, UserError, brief
from pixelthink.policies.base import PolicyBackbone


def require_checkpoint(path: str) -> None:
    """Refuses a local path where there is no model.

    Raises:
        MissingFileError: one line that names the path, and says so where an adapter lies there.
    """
    looks_local = path.startswith((".", "/", "~")) or Path(path).exists() or path.count("/") != 1
    if not looks_local or (Path(path) / "config.json").is_file():
        return
    if (Path(path) / "adapter_config.json").is_file():
        try:
            config = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))
            base = config["base_model_name_or_path"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise FileError(f"policy.path: adapter_config.json in {path!r} is damaged ({brief(error)})") from None
        raise MissingFileError(
            f"policy.path: {path!r} holds an adapter, not a model; set policy.path to its base {base!r} and "
            f"policy.adapter.init_from to {path!r}"
        )
    raise MissingFileError(f"policy.path: no config.json in {path!r}, so there is no model to load")


@contextmanager
def clear_errors(path: str) -> Iterator[None]:
    """Turns what transformers raises where a model cannot be loaded into one line that names the option.

    Raises:
        UserError: an option that this model does not take, such as an unknown attention kernel.
        MissingFileError: there is no model, or it is damaged.
        MissingPackageError: an option needs a package that is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingPackageError(f"policy: loading {path!r} needs a missing package ({brief(error)})") from error
    except (OSError, SafetensorError) as error:
        is_folder = Path(path).is_dir()
        where = "the folder is incomplete or damaged" if is_folder else "no such folder, nor a model of the hub"
        raise MissingFileError(f"policy.path: cannot load {path!r}, {where} ({brief(error)})") from error
    except ValueError as error:
        raise UserError(f"policy: cannot load {path!r} with these options ({brief(error)})") from error


def check_family(path: str, owner: type[PolicyBackbone], local_files_only: bool) -> None:
    """Refuses a checkpoint of another family than the class that was named for it.

    Raises:
        UserError: one line that names the right class, or what a class for this family would have to provide.
    """
    found = family_of(path, local_files_only)
    if found.model_type != owner.model_type:
        raise UserError(
            f"policy: {path!r} is a {found.model_type} model: use {found.__name__} for it, not {owner.__name__}"
        )


def family_of(path: str, local_files_only: bool = False) -> type[PolicyBackbone]:
    """The class for a checkpoint's family.

    Args:
        path: Folder in Hugging Face format, or a hub id.
        local_files_only: Never ask a model hub.

    Raises:
        UserError: there is no readable configuration, or no class for the family; one line.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT_MODELS

    require_checkpoint(path)
    with clear_errors(path):
        found = AutoConfig.from_pretrained(path, local_files_only=local_files_only).model_type
    known = {family.model_type: family for family in _families(PolicyBackbone)}
    if found in known:
        return known[found]
    if found not in IMAGE_TEXT_MODELS:
        raise UserError(f"policy.path: {path!r} is a {found} model, which does not take an image and text to text")
    classes = ", ".join(family.__name__ for family in known.values())
    raise UserError(
        f"policy: {path!r} is a {found} model, a family that has no class yet (there are {classes}). "
        "A new one is a PolicyBackbone in one file: its coordinate convention, encode, score, stop and forbidden "
        "tokens, and prefill and decode for HFEngine; docs/new_model_family.md shows a whole one"
    )


def _families(base: type[Any]) -> Iterator[type[PolicyBackbone]]:
    """The classes that introduce a family: those that name a model type of their own."""
    for family in base.__subclasses__():
        if family.__dict__.get("model_type"):
            yield family
        yield from _families(family)
