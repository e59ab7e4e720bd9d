"""Exports the trained policy in Hugging Face format."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError
from torch import nn

from pixelthink.errors import FileError, UserError
from pixelthink.evaluation.interface import SegmentationModule
from pixelthink.files.checkpoints import replace_folder, write_failure
from pixelthink.parallel.sharding import full_state, is_sharded
from pixelthink.policies.base import PolicyBackbone


class HFExport(Callback):
    """Writes weights, configuration and processor when training ends.

    Args:
        path: Folder to write. It appears whole or not at all; an earlier export there is replaced.
        what: `model` loads with `from_pretrained`, adapters merged and quantised weights unpacked; `adapter` is the
            adapter alone, in peft's format, for `PeftModel.from_pretrained`, vLLM or `policy.adapter.init_from`.
            Merging takes the unpacked quantised weights, which the adapter was trained on, not the original ones.
    """

    def __init__(self, path: str, what: Literal["model", "adapter"] = "model") -> None:
        self.path = path
        self.what = what

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuses what could not be exported, before training and not after it."""
        if (
            self.what == "adapter"
            and isinstance(pl_module, SegmentationModule)
            and not pl_module.answerer.backbone.adapter_rank
        ):
            raise UserError("HFExport: what is 'adapter', but the policy has none; set model.policy.adapter")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, SegmentationModule) or pl_module.policy is None:
            return
        backbone, model = pl_module.answerer.backbone, pl_module.policy
        if is_sharded(model):
            weights = full_state(model)
            if trainer.is_global_zero:
                model = backbone.load_model()  # a sharded model can be neither copied nor written as it is
                model.load_state_dict(weights)
        if trainer.is_global_zero:
            export_policy(backbone, model, Path(self.path), self.what)


def export_policy(
    backbone: PolicyBackbone, model: nn.Module, folder: Path, what: Literal["model", "adapter"] = "model"
) -> None:
    """Writes a policy and its processor to a folder that appears whole or not at all.

    Args:
        backbone: Knows the model.
        model: What `backbone.load_model` gave, with the weights to write.
        folder: Where to.
        what: As for `HFExport`.

    Raises:
        FileError: the folder cannot be written; one line. An earlier export is still there, and nothing else.
        UserError: there is no adapter to write; one line.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        backbone.save(model, scratch, what)
        scratch.chmod(0o755)
        replace_folder(folder, scratch)
    except (OSError, SafetensorError) as error:
        raise FileError(f"policy cannot be exported to {folder}: {write_failure(error, folder.parent)}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
