"""Exports the trained policy in Hugging Face format."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

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
    """Writes a module's policy and processor to a folder that appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        cast("Any", module.policy).save_pretrained(scratch)
        module.backbone.processor.save_pretrained(scratch)
        scratch.chmod(0o755)
        replaced = scratch.with_name(f"{scratch.name}-old")
        if folder.exists():
            folder.rename(replaced)
        scratch.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
