"""Writes the policy of a checkpoint in Hugging Face format. Needs no GPU.

python tools/export_policy.py --config runs/tiny/version_0/config.yaml --checkpoint runs/tiny/checkpoints/last.ckpt \
    --output exported
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import ArgumentParser
from omegaconf import OmegaConf
from torch import nn

from pixelthink.callbacks.hf_export import export_policy
from pixelthink.cli.main import USER_ERRORS, one_line
from pixelthink.cli.messages import instantiate
from pixelthink.cli.registry import load_components
from pixelthink.errors import MissingFileError, UserError
from pixelthink.files.checkpoints import AtomicCheckpointIO
from pixelthink.policies.base import PolicyBackbone

PREFIX = "policy."


def policy_of(config: Path) -> PolicyBackbone:
    """The policy that a run's config names, as an object without weights.

    Raises:
        UserError: the config has no `model.init_args.policy`; one line.
    """
    if not config.is_file():
        raise MissingFileError(f"--config: there is no file {str(config)!r}")
    node = OmegaConf.select(OmegaConf.load(config), "model.init_args.policy")
    if node is None:
        raise UserError(f"--config: {config} has no model.init_args.policy")
    load_components()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PolicyBackbone, "policy")
    value = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else {"class_path": node}
    made = instantiate(parser, parser.parse_object({"policy": value}))
    assert isinstance(made.policy, PolicyBackbone)
    return made.policy


def load_checkpoint(backbone: PolicyBackbone, model: nn.Module, checkpoint: Path) -> None:
    """Puts a checkpoint's weights into a model.

    Raises:
        UserError: the checkpoint holds other weights than this policy's; one line.
        MissingFileError: there is no such file; one line.
    """
    if not checkpoint.is_file():
        raise MissingFileError(f"--checkpoint: there is no file {str(checkpoint)!r}")
    state = AtomicCheckpointIO().load_checkpoint(checkpoint, map_location="cpu")["state_dict"]
    weights = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    expected = backbone.checkpointed(model)
    if different := sorted(expected ^ weights.keys()):
        raise UserError(
            f"--checkpoint: {checkpoint} is another policy's than the config's: {len(different)} weights are in one "
            f"and not in the other, {different[0]!r} first"
        )
    model.load_state_dict(weights, strict=False)


def main(config: Path, checkpoint: Path, output: Path, what: Literal["model", "adapter"] = "model") -> None:
    """Writes the policy of a checkpoint.

    Args:
        config: The run's configuration, as its log folder has it.
        checkpoint: The run's checkpoint.
        output: Folder to write; it appears whole or not at all.
        what: `model`, which `from_pretrained` loads, adapter merged and quantised weights unpacked; or `adapter`, which
            `PeftModel.from_pretrained` loads onto its base.
    """
    backbone = policy_of(config)
    backbone.setup()
    with torch.device("cpu"):
        model = backbone.load_model()
    load_checkpoint(backbone, model, checkpoint)
    export_policy(backbone, model, output, what)
    print(f"{what} of {checkpoint} written to {output}")


if __name__ == "__main__":
    arguments = ArgumentParser(description=__doc__)
    arguments.add_function_arguments(main, as_group=False)
    try:
        main(**vars(arguments.parse_args()))
    except USER_ERRORS as error:
        print(f"export_policy: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
