"""The best checkpoint within a token budget is kept, and a run that gets no better ends early."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from pixelthink.data.datamodule import PromptData
from pixelthink.data.prompts import ShortPrompt
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.evaluation.config import EvaluationConfig
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.training.grpo_module import GRPOModule
from tests.processes import TokenReward

MONITORED = "val/giou_within_budget"

pytestmark = pytest.mark.slow


def test_best_checkpoint_and_early_stopping_go_by_giou_within_the_budget(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    greedy = SamplingConfig(group_size=1, temperature=0.0, max_new_tokens=4)
    module = GRPOModule(
        Qwen25VL(str(tiny_policy_path), dtype="float32", local_files_only=True),
        TokenReward(5),
        sampling=SamplingConfig(group_size=2, max_new_tokens=4),
        evaluation=EvaluationConfig(sampling=greedy, token_budget=8.0),
    )
    data = PromptData(
        train=ShapeScenes(size=16),
        val=ShapeScenes(split="val", size=2),
        prompt=ShortPrompt(),
        image_size=(112, 112),
        batch_size=2,
    )
    best = ModelCheckpoint(dirpath=tmp_path, monitor=MONITORED, mode="max", save_top_k=1, filename="best-{step}")
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[best, EarlyStopping(monitor=MONITORED, mode="max", patience=2)],
        max_epochs=1,
        val_check_interval=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data)
    metrics = trainer.callback_metrics
    assert float(metrics["val/reasoning_tokens"]) == 0  # a random policy does not think, so it keeps the budget
    assert float(metrics[MONITORED]) == float(metrics["val/giou"]) == 0
    assert trainer.global_step == 6  # the first validation is the best, and two without a better one are enough
    assert [path.name for path in tmp_path.iterdir()] == ["best-step=2.ckpt"]
    assert float(best.best_model_score) == 0  # type: ignore[arg-type]
