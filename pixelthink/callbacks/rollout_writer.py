"""Keeps what a training sampled, so that one can read how its reasoning got shorter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from pixelthink.data.solution import written_solution
from pixelthink.errors import UserError
from pixelthink.files.jsonl import write_rows_atomically
from pixelthink.types import RewardOutput, RolloutBatch, Score


class RolloutWriter(Callback):
    """Writes the rollout of a GRPO step as `step-SSSSSS.rank-R.jsonl.gz`, one row a completion.

    `SSSSSS` is the number of optimizer steps when the step is over, R the process. A file appears whole or not at all.
    A resumed run writes the steps that it takes again anew, with the same rows. `tools/score_rollouts.py` reads them:
    a row has `id, response, solution, difficulty, uncertainty, reasoning_token_count, response_token_count`, and beside
    that `question, step, policy_version, finish_reason, parts, length_used, length_budget, length_score, reward,
    advantage`.

    Args:
        path: Folder to write to.
        every_n_steps: A rollout in so many training steps is written.

    Raises:
        UserError: `every_n_steps` below 1.
    """

    def __init__(self, path: str, every_n_steps: int = 1) -> None:
        if every_n_steps < 1:
            raise UserError(f"RolloutWriter: every_n_steps must be at least 1, got {every_n_steps}")
        self.path = Path(path)
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes what the step returned.

        Raises:
            UserError: the module trains on no rollouts.
            FileError: the file cannot be written; names it.
        """
        if not isinstance(outputs, Mapping) or "rollout" not in outputs:
            raise UserError(f"RolloutWriter: {type(pl_module).__name__} trains on no rollouts; take the callback out")
        if batch_idx % self.every_n_steps == 0:
            name = f"step-{trainer.global_step:06d}.rank-{trainer.global_rank}.jsonl.gz"
            write_rows_atomically(self.path / name, rollout_rows(**outputs, step=trainer.global_step))


def rollout_rows(rollout: RolloutBatch, rewards: RewardOutput, advantages: Any, step: int) -> list[dict[str, Any]]:
    """One row a completion, group-major, see `RolloutWriter`.

    Args:
        rollout: N completions.
        rewards: Theirs.
        advantages: (N,).
        step: Optimizer steps that the policy had seen when the step was over.
    """
    return [
        _row(rollout, index, score, advantage) | {"step": step}
        for index, (score, advantage) in enumerate(zip(rewards.scores, advantages.tolist(), strict=True))
    ]


def _row(rollout: RolloutBatch, index: int, score: Score, advantage: float) -> dict[str, Any]:
    prompt, completion = rollout.prompt_of(index), rollout.completions[index]
    asked = prompt.token_target
    return {
        "id": prompt.sample.id,
        "question": prompt.sample.question,
        "response": completion.text,
        "solution": written_solution(prompt.targets, prompt.answer_style),
        "difficulty": prompt.sample.difficulty,
        "uncertainty": completion.uncertainty,
        "reasoning_token_count": completion.reasoning_tokens,
        "response_token_count": len(completion.token_ids),
        "token_target": None if asked is None else (-asked.tokens if asked.at_most else asked.tokens),
        "finish_reason": completion.finish_reason,
        "policy_version": rollout.policy_version,
        "parts": dict(score.parts),
        "length_used": score.length_used,
        "length_budget": score.length_budget,
        "length_score": score.length_score,
        "reward": score.reward,
        "advantage": advantage,
    }
