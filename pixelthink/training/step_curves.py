"""The numbers of a GRPO step that are worth a curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pixelthink.grpo.advantages import flat_group_share
from pixelthink.grpo.mismatch import mismatch_stats, mismatch_sums
from pixelthink.parallel.processes import Processes
from pixelthink.training.scorer import Gradients
from pixelthink.types import LEVELS, RewardOutput, RolloutBatch, difficulty_level

Sums = dict[str, tuple[float, int]]
"""Name → sum and count."""


def step_curves(
    rollout: RolloutBatch,
    rewards: RewardOutput,
    updates: Sequence[Gradients],
    seconds: Mapping[str, float],
    processes: Processes,
) -> dict[str, float | Tensor]:
    """Everything that loggers are told about a step; equal on all processes, which call it together.

    Args:
        rollout: Of this process.
        rewards: Of the rollout.
        updates: One for each optimizer step.
        seconds: Wall-clock time of this process by phase.
        processes: Of the run.

    Returns:
        `loss/…` means over the updates; `train/…` means over all completions; `seconds/…`; `mismatch/…`, how far the
        rollout engine's distribution is from the policy's, over the tokens that were trained on.
    """
    device = updates[0].log_ratio.device
    sums = rollout_sums(rollout, rewards)
    table = processes.sum(torch.tensor(list(sums.values()), dtype=torch.float64, device=device)).tolist()
    step_seconds = sum(seconds.values())
    flat = torch.tensor(flat_group_share(rewards.total, rollout.group_size), device=device)
    curves: dict[str, float | Tensor] = {
        f"loss/{name}": torch.stack([update.stats[name] for update in updates]).mean() for name in updates[0].stats
    }
    curves |= {f"train/{name}": total / n for name, (total, n) in zip(sums, table, strict=True) if n}
    curves["train/flat_groups"] = processes.sum(flat) / processes.count
    curves["train/tokens_per_second"] = table[list(sums).index("response_tokens")][0] / step_seconds
    curves |= {f"seconds/{phase}": value for phase, value in seconds.items()} | {"seconds/step": step_seconds}
    log_ratio = torch.cat([update.log_ratio for update in updates])
    mismatch = mismatch_stats(processes.sum(mismatch_sums(log_ratio)))
    curves |= {f"mismatch/{name}": value for name, value in mismatch.items()}
    p99 = torch.quantile(log_ratio.abs().float(), 0.99)
    curves["mismatch/log_ratio_abs_p99"] = processes.sum(p99) / processes.count  # the processes' mean
    return curves


def rollout_sums(rollout: RolloutBatch, rewards: RewardOutput) -> Sums:
    """Sums and counts over a rollout's completions: reward and its parts, lengths, uncertainty, truncation, by level.

    Every name is there on every process, with count 0 where nothing had it, so that processes can add theirs up.
    """
    names = ["reward", *(f"reward_{part}" for part in rewards.scores[0].parts), "length_score", "length_budget"]
    names += ["response_tokens", "reasoning_tokens", "truncated", "uncertainty"]
    names += [f"{name}_{level}" for level in LEVELS for name in ("reasoning_tokens", "reward")]
    sums: Sums = dict.fromkeys(names, (0.0, 0))

    def note(name: str, value: float | None) -> None:
        if value is not None:
            total, count = sums[name]
            sums[name] = (total + float(value), count + 1)

    for index, (completion, score) in enumerate(zip(rollout.completions, rewards.scores, strict=True)):
        note("reward", score.reward)
        for part, value in score.parts.items():
            note(f"reward_{part}", value)
        note("length_score", score.length_score)
        note("length_budget", score.length_budget)
        note("response_tokens", len(completion.token_ids))
        note("reasoning_tokens", completion.reasoning_tokens)
        note("truncated", completion.finish_reason == "length")
        note("uncertainty", completion.uncertainty)
        difficulty = rollout.prompt_of(index).sample.difficulty
        if difficulty is not None:
            note(f"reasoning_tokens_{difficulty_level(difficulty)}", completion.reasoning_tokens)
            note(f"reward_{difficulty_level(difficulty)}", score.reward)
    return sums
