"""Exports the trained policy in Hugging Face format."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError

from pixelthink.checkpoint_io import write_failure
from pixelthink.evaluation import PolicyModule


class HFExport(Callback):
    """Writes weights, configuration and processor when training ends; loads with `from_pretrained`.

    Args:
        path: Folder to write. It appears whole or not at all; an earlier export there is replaced.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and isinstance(pl_module, PolicyModule):
            export_policy(pl_module, Path(self.path))


def export_policy(module: PolicyModule, folder: Path) -> None:
    """Writes a module's policy and processor to a folder that appears whole or not at all.

    Raises:
        OSError: the folder cannot be written; one line. An earlier export is still there, and nothing else.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        cast("Any", module.policy).save_pretrained(scratch)
        module.backbone.processor.save_pretrained(scratch)
        scratch.chmod(0o755)
        _replace(folder, scratch)
    except (OSError, SafetensorError) as error:
        raise OSError(f"policy cannot be exported to {folder}: {write_failure(error, folder.parent)}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replace(folder: Path, scratch: Path) -> None:
    """Puts a new folder in the place of an old one, which comes back if that fails."""
    old = scratch.with_name(f"{scratch.name}-old")
    if folder.exists():
        folder.rename(old)
    try:
        scratch.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
