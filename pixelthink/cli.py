"""The command line: LightningCLI over the registry, with errors that fit on a line."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import ArgsType, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pixelthink.data.datamodule import PromptData
from pixelthink.evaluation import PolicyModule
from pixelthink.registry import RegistryError, load_components

USER_ERRORS = (ValueError, FileNotFoundError, PermissionError, OSError, MisconfigurationException, RegistryError)
"""Errors whose message is for the user; anything else is a bug and keeps its traceback."""

TRAINER_DEFAULTS = {
    "logger": {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "runs"}},
    "use_distributed_sampler": False,
    "log_every_n_steps": 1,
}


class PixelThinkCLI(LightningCLI):
    """LightningCLI whose model is any `PolicyModule` and whose data is `PromptData`."""

    def __init__(self, args: ArgsType = None, run: bool = True) -> None:
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        super().__init__(
            PolicyModule,
            PromptData,
            subclass_mode_model=True,
            save_config_callback=SaveConfigCallback,
            save_config_kwargs={"overwrite": True},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={"parser_mode": "omegaconf"},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
            run=run,
        )


def main(args: Sequence[str] | None = None) -> None:
    """Runs a subcommand. User errors end it with one line on stderr and status 2; PIXELTHINK_DEBUG=1 adds the trace."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)
    try:
        load_components()
        PixelThinkCLI(args=list(args) if args is not None else None)
    except USER_ERRORS as error:
        if os.environ.get("PIXELTHINK_DEBUG"):
            traceback.print_exc()
        print(f"pixelthink: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def one_line(error: BaseException) -> str:
    """The error's message, or its name where it has none, on one line."""
    text = " ".join(str(error).split())
    return text or type(error).__name__
