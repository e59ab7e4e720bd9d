"""The command line: LightningCLI over the registry, with errors that fit on a line."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pixelthink.callbacks.graceful_stop import GracefulStop
from pixelthink.callbacks.training_health import TrainingHealth
from pixelthink.cli.layers import require_model, with_bases
from pixelthink.cli.messages import constructor_errors, short_message
from pixelthink.cli.registry import load_components
from pixelthink.data.datamodule import PromptData
from pixelthink.errors import MissingFileError, UserError
from pixelthink.evaluation.interface import SegmentationModule
from pixelthink.parallel.peers import PeerWatch

USER_ERRORS = (UserError, ArgumentError, MisconfigurationException)
"""Errors that the user can mend, printed on one line; anything else is a bug and keeps its traceback."""

PEER_NEWS_SECONDS = 3.0
"""How long an error that may follow from the failure of another process waits for the news of that failure."""

DEFAULT_CONFIG = Path("configs/tiny.yaml")
"""What a subcommand runs without `--config`, from the root of a clone. Configs and assets are not packaged."""

TRAINER_DEFAULTS = {
    "logger": {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "runs"}},
    "use_distributed_sampler": False,
    "log_every_n_steps": 1,
    "default_root_dir": "runs",
    "plugins": [{"class_path": "pixelthink.files.checkpoints.AtomicCheckpointIO"}],
}


EXPECTED_WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning against a newer torch
    r"Found \d+ module\(s\) in eval mode",  # the frozen reference
    r"Using ModelCheckpoint with manual optimization",  # checkpoints shall hold the state after the step
    r"It is recommended to use `self\.log\(.*sync_dist=True",  # metrics sync themselves before they are logged
    r"Total length of `list` across ranks is zero",  # a run without validation
    r".*is set, but there is no last checkpoint available",  # the module says so, or refuses
)
"""Lightning's warnings about what this package does on purpose."""


class PixelThinkCLI(LightningCLI):
    """LightningCLI whose model is any `SegmentationModule` and whose data is `PromptData`."""

    def __init__(self, args: ArgsType = None, run: bool = True, callbacks: Sequence[Callback] = ()) -> None:
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        super().__init__(
            SegmentationModule,
            PromptData,
            subclass_mode_model=True,
            save_config_callback=SaveConfigCallback,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={**TRAINER_DEFAULTS, "callbacks": list(callbacks)},
            seed_everything_default=0,
            parser_kwargs={"parser_mode": "omegaconf", "exit_on_error": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `base`, the configs that a config builds on; has every run's health watched (`--health.limits.…`)."""
        parser.add_argument("--base", type=str | list[str] | None, default=None, help="Configs below this one.")
        parser.add_lightning_class_args(TrainingHealth, "health")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the list that `main` made of the command line."""
        assert isinstance(args, list)
        laid_out = with_bases(args)
        require_model(laid_out)
        self.config = parser.parse_args(laid_out)
        (self.config.get(self.config.get("subcommand") or "") or self.config).base = None  # has been laid below

    def _parse_ckpt_path(self) -> None:
        """Nothing: a checkpoint has no say in the configuration, and need not be read twice."""

    def instantiate_classes(self) -> None:
        """Makes the components."""
        with constructor_errors():
            super().instantiate_classes()

    def before_instantiate_classes(self) -> None:
        """Refuses a checkpoint that is not there before anything is loaded; keeps no predictions in memory."""
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        if self.subcommand == "predict":
            config.return_predictions = False  # a callback has written them; each holds its image
        path = config.get("ckpt_path")
        named = path is not None and path not in ("best", "last", "hpc") and "://" not in str(path)
        if named and not str(path).startswith("registry") and not Path(path).exists():
            raise MissingFileError(f"--ckpt_path: there is no checkpoint {str(path)!r}")


def main(args: Sequence[str] | None = None) -> None:
    """Runs a subcommand. User errors end it with one line on stderr and status 2; PIXELTHINK_DEBUG=1 adds the trace.

    Args:
        args: Command line without the program's name; None takes the process's own.
    """
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)
    watch = PeerWatch()
    try:
        load_components()
        PixelThinkCLI(
            args=with_default_config(sys.argv[1:] if args is None else args), callbacks=[watch, GracefulStop()]
        )
    except KeyboardInterrupt:  # before the first step
        raise SystemExit(130) from None
    except Exception as error:
        if watch.peer_has_failed(0.0 if isinstance(error, USER_ERRORS) else PEER_NEWS_SECONDS):
            raise SystemExit(1) from None
        watch.end()
        if not isinstance(error, USER_ERRORS):
            raise
        if os.environ.get("PIXELTHINK_DEBUG"):
            traceback.print_exc()
        print(f"pixelthink: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def with_default_config(args: Sequence[str]) -> list[str]:
    """The arguments, with `--config configs/tiny.yaml` where a subcommand has neither a config nor a `--model` class.

    Args:
        args: Command line without the program's name.

    Raises:
        MissingFileError: a config is needed and the default one is not in the working directory.
    """
    subcommand, *options = args or [""]
    names = {option.split("=")[0] for option in options}
    asks_for_help = any(name in ("-h", "--help") or name.endswith(".help") for name in names)
    has_config = any(name in ("--config", "--model") or name[:2] == "-c" for name in names)
    if subcommand not in PixelThinkCLI.subcommands() or asks_for_help or has_config:
        return list(args)
    if not DEFAULT_CONFIG.is_file():
        raise MissingFileError(f"no --config given, and there is no {DEFAULT_CONFIG} here to run by default")
    print(f"pixelthink: no --config given, running the demo's: --config {DEFAULT_CONFIG}", file=sys.stderr)
    return [subcommand, "--config", str(DEFAULT_CONFIG), *options]


def one_line(error: BaseException) -> str:
    """What a user needs of an error, on one line; its name where it has no message."""
    text = error.message if isinstance(error, ArgumentError) else str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:  # of a dataloader's worker, whose last line it is
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return short_message(text) or type(error).__name__
