"""Turns a sharded checkpoint of verl or EasyR1 into Hugging Face format. Needs no GPU; runs no code of its pickles.

    python tools/import_checkpoint.py --checkpoint checkpoints/global_step_560/actor --output policies/seg_zero

The checkpoint is a folder of `model_world_size_N_rank_R.pt`. Configuration, processor and tokenizer are those of its
folder `huggingface`, or of --base. Weights keep their bits and their precision; --dtype bfloat16 rounds them, as the
released model_merger.py does. The output appears whole or not at all, and is checked against the model's class.

Exit code 0; 2 with one line on standard error where something is wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from pixelthink.errors import MissingFileError, UserError
from pixelthink.files.fsdp_shards import ShardedCheckpoint, count_not_finite
from pixelthink.files.model_folder import write_model_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = ArgumentParser(
        prog="import_checkpoint.py", description=(__doc__ or "").split("\n")[0], exit_on_error=False
    )
    parser.add_argument("--checkpoint", type=str, required=True, help="Folder of model_world_size_N_rank_R.pt.")
    parser.add_argument("--output", type=str, required=True, help="Folder to write.")
    parser.add_argument("--base", type=str, help="Folder of the same model; CHECKPOINT/huggingface by default.")
    parser.add_argument(
        "--dtype", type=Literal["keep", "float32", "bfloat16", "float16"], default="keep", help="Precision to write."
    )
    try:
        options = parser.parse_args(arguments)
        import_checkpoint(Path(options.checkpoint), Path(options.output), options.base, options.dtype)
    except (ArgumentError, UserError, OSError) as error:
        print(f"error: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 2
    return 0


def import_checkpoint(checkpoint: Path, output: Path, base: str | None, dtype: str) -> None:
    """Reads the shards and writes the model; raises UserError, one line."""
    if not checkpoint.is_dir():
        raise MissingFileError(f"--checkpoint: there is no folder {str(checkpoint)!r}")
    if output.exists() and not (output / "config.json").is_file():
        raise UserError(f"--output: {output} exists and holds no model, so it is not replaced; name another folder")
    base_folder = Path(base) if base is not None else checkpoint / "huggingface"
    shards = ShardedCheckpoint(checkpoint)
    count = write_model_folder(output, base_folder, weights(shards, None if dtype == "keep" else dtype), fits_its_class)
    print(f"{count} weights of {shards.ranks} ranks in {checkpoint} written to {output}")


def weights(shards: ShardedCheckpoint, dtype: str | None) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of each weight, floating-point ones rounded to `dtype`.

    Raises:
        UserError: a value is too large for `dtype`; names the weight.
    """
    for name, tensor in shards.tensors():
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(getattr(torch, dtype))
            if wrong := count_not_finite(tensor):
                raise UserError(f"--dtype: {wrong} values of {name} are too large for {dtype}; take float32 or keep")
        yield name, tensor


def fits_its_class(folder: Path) -> None:
    """Refuses weights that are not those of the model that the configuration names.

    Raises:
        UserError: the class is not known, or weights are missing, left over or of other shapes; names the first.
    """
    import transformers

    name = str((json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [None])[0])
    kind = getattr(transformers, name, None)
    if kind is None:
        raise UserError(f"config.json: architectures names {name!r}, which this version of transformers lacks")
    loud = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        options = {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
        _, found = kind.from_pretrained(folder, local_files_only=True, **options)
    finally:
        transformers.logging.set_verbosity(loud)
        transformers.logging.enable_progress_bar()
    faults = {"missing_keys": "lacks", "unexpected_keys": "has too many:", "mismatched_keys": "has of other shapes"}
    for fault, word in faults.items():
        if names := sorted(map(str, found.get(fault) or ())):
            raise UserError(f"the checkpoint is not of a {name}: it {word} {len(names)} weights, {names[0]} first")


if __name__ == "__main__":
    sys.exit(main())
