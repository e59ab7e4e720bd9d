"""A model in Hugging Face format from weights that come one at a time."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pixelthink.errors import FileError, MissingFileError
from pixelthink.files.checkpoints import replace_folder, write_failure

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
"""Ends of the names of files that are not copied from a base model."""
FILE_BYTES = 5_000_000_000


def write_model_folder(
    folder: Path,
    base: Path,
    weights: Iterable[tuple[str, Tensor]],
    check: Callable[[Path], None] = lambda folder: None,
    file_bytes: int = FILE_BYTES,
) -> int:
    """Writes weights, with configuration and tokenizer of a base model; the folder appears whole or not at all.

    Args:
        folder: Where to; what was there is replaced.
        base: Folder with `config.json` and whatever else belongs to the model; its weights are not copied.
        weights: Name and tensor of each; one file's worth of them is in memory at a time.
        check: Called with the finished folder before it takes its place; what it raises leaves nothing behind.
        file_bytes: Size at which a file of weights is full.

    Returns:
        The number of weights. The configuration's precision is theirs, where all have the same.

    Raises:
        MissingFileError: the base has no `config.json`.
        FileError: the folder cannot be written; one line. What was there before is still there.
    """
    if not (base / "config.json").is_file():
        raise MissingFileError(f"{base}: there is no config.json; name a folder of the same model with --base")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for file in base.iterdir():
            if file.is_file() and not file.name.endswith(WEIGHTS):
                shutil.copyfile(file, scratch / file.name)
        count, dtypes = _write_weights(scratch, weights, file_bytes)
        if len(dtypes) == 1:
            _set_dtype(scratch / "config.json", str(dtypes.pop()).removeprefix("torch."))
        check(scratch)
        scratch.chmod(0o755)
        replace_folder(folder, scratch)
    except FileError:
        raise
    except (OSError, SafetensorError) as error:
        raise FileError(f"{folder} cannot be written: {write_failure(error, folder.parent)}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return count


def _write_weights(
    folder: Path, weights: Iterable[tuple[str, Tensor]], file_bytes: int
) -> tuple[int, set[torch.dtype]]:
    """Writes the files of weights and their index; returns the number of weights and their precisions."""
    waiting: dict[str, Tensor] = {}
    files: list[list[str]] = []
    total, dtypes = 0, set[torch.dtype]()

    def flush() -> None:
        save_file(waiting, folder / f"part-{len(files)}", metadata={"format": "pt"})
        files.append(list(waiting))
        waiting.clear()

    for name, tensor in weights:
        size = tensor.numel() * tensor.element_size()
        if waiting and size + sum(t.numel() * t.element_size() for t in waiting.values()) > file_bytes:
            flush()
        waiting[name] = tensor.clone(memory_format=torch.contiguous_format)  # one storage each, as safetensors wants it
        total += size
        dtypes.add(tensor.dtype)
    flush()
    names = [f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))]
    names = names if len(files) > 1 else ["model.safetensors"]
    for number, name in enumerate(names):
        (folder / f"part-{number}").rename(folder / name)
    if len(files) > 1:
        places = {weight: name for name, listed in zip(names, files, strict=True) for weight in listed}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return sum(map(len, files)), dtypes


def _set_dtype(path: Path, name: str) -> None:
    """Puts the weights' precision into a configuration, so that loading does not round them."""
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    path.write_text(json.dumps({**config, "dtype": name}, indent=2), encoding="utf-8")
