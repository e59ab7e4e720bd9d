"""What several tests share."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
GOLDENS = Path(__file__).parent / "goldens"


def golden_rows(name: str) -> list[dict[str, Any]]:
    """Rows of a golden file, computed with the released functions (see `tests/goldens/README.md`)."""
    with gzip.open(GOLDENS / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def tiny_run(folder: Path, policy: Path | str) -> list[str]:
    """Options of a run of configs/tiny.yaml that takes seconds: a random policy, two steps, everything in a folder."""
    logger = f"{{class_path: TensorBoardLogger, init_args: {{save_dir: {folder}, name: logs, version: ''}}}}"
    return [
        f"--config={ROOT / 'configs/tiny.yaml'}",
        f"--model.policy.path={policy}",
        "--model.sampling.group_size=2",
        "--model.sampling.max_new_tokens=10",
        "--model.evaluation.sampling.max_new_tokens=10",
        "--data.batch_size=2",
        "--data.eval_batch_size=4",
        "--data.train.size=4",
        "--data.val.size=4",
        "--data.test.size=4",
        "--data.predict.size=3",
        "--trainer.val_check_interval=2",
        f"--trainer.callbacks={callbacks(folder)}",
        f"--trainer.logger={logger}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]


def callbacks(folder: Path) -> str:
    """The callbacks of configs/tiny.yaml, writing to a folder."""
    return (
        f"[{{class_path: HFExport, init_args: {{path: {folder}/policy}}}}, SampleLogger, "
        f"{{class_path: ModelCheckpoint, init_args: {{dirpath: {folder}/checkpoints, save_last: true, "
        "every_n_train_steps: 1}}]"
    )
