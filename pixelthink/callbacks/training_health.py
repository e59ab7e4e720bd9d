"""Warnings about GRPO runs that go wrong while every step still succeeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from pixelthink.errors import UserError

WATCHED = {
    "reward": "train/reward",
    "entropy": "loss/entropy",
    "kl": "loss/kl",
    "flat": "train/flat_groups",
    "truncated": "train/truncated",
}
"""What is looked at, and under which name `GRPOModule` logs it."""


@dataclass(frozen=True)
class HealthLimits:
    """When a run is in trouble. Means are over the last `window` steps.

    Attributes:
        window: Steps behind each mean; also how many must have passed before anything is said.
        reward_kept: Share of the best mean reward that there was, below which the reward counts as collapsed.
        entropy_kept: Share of the first window's mean entropy, below which the entropy counts as collapsed.
        kl: Mean KL to the reference per token, in nats, that is too much.
        flat_groups: Share of groups with equal rewards, which teach nothing, that is too much.
        truncated: Share of completions cut off by `max_new_tokens` that is too much.
    """

    window: int = 20
    reward_kept: float = 0.5
    entropy_kept: float = 0.1
    kl: float = 1.0
    flat_groups: float = 0.9
    truncated: float = 0.5

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UserError("TrainingHealth: limits.window must be at least 1")
        shares = {name: value for name, value in asdict(self).items() if name not in ("window", "kl")}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise UserError(f"TrainingHealth: limits.{name} must lie in [0, 1], not {value}")
        if self.kl <= 0:
            raise UserError(f"TrainingHealth: limits.kl must be positive, not {self.kl}")


@dataclass
class HealthRecord:
    """What a run has shown so far.

    Attributes:
        recent: The last values of each watched number.
        best_reward: Best mean reward of any window.
        first_entropy: Mean entropy of the first window.
        warned: Troubles that were reported and have not passed since.
    """

    recent: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in WATCHED})
    best_reward: float | None = None
    first_entropy: float | None = None
    warned: list[str] = field(default_factory=list)

    def note(self, values: Mapping[str, float], window: int) -> dict[str, float]:
        """Adds a step's numbers; gives the means of those that have filled their window."""
        means: dict[str, float] = {}
        for name, value in values.items():
            self.recent[name] = [*self.recent[name], value][-window:]
            if len(self.recent[name]) == window:
                means[name] = fmean(self.recent[name])
        if "reward" in means:
            known = [] if self.best_reward is None else [self.best_reward]
            self.best_reward = max([means["reward"], *known])
        if "entropy" in means and self.first_entropy is None:
            self.first_entropy = means["entropy"]
        return means


@dataclass(frozen=True)
class Trouble:
    """One thing that can go wrong.

    Attributes:
        looks_at: The watched number.
        is_there: Whether a mean of it is over the limit.
        message: What was found and what to do, from the same.
    """

    looks_at: str
    is_there: Callable[[float, HealthRecord, HealthLimits], bool]
    message: Callable[[float, HealthRecord, HealthLimits], str]


TROUBLES = {
    "reward collapse": Trouble(
        "reward",
        lambda mean, record, limits: mean < limits.reward_kept * (record.best_reward or 0.0) > 0,
        lambda mean, record, limits: (
            f"the mean reward fell to {mean:.3g} from a best of {record.best_reward:.3g}. Go back to a checkpoint from "
            "before the fall; a lower learning rate or a higher grpo.kl_coef keeps the policy closer to it"
        ),
    ),
    "entropy collapse": Trouble(
        "entropy",
        lambda mean, record, limits: mean < limits.entropy_kept * (record.first_entropy or 0.0),
        lambda mean, record, limits: (
            f"the policy's entropy fell to {mean:.3g} nats a token from {record.first_entropy:.3g}, so that a group's "
            "completions hardly differ. Raise grpo.entropy_coef or sampling.temperature, or lower the learning rate"
        ),
    ),
    "KL blow-up": Trouble(
        "kl",
        lambda mean, record, limits: mean > limits.kl,
        lambda mean, record, limits: (
            f"the policy is {mean:.3g} nats a token away from the reference (limit {limits.kl:g}). Raise grpo.kl_coef "
            "or lower the learning rate, and read some completions: language is lost first"
        ),
    ),
    "equal rewards": Trouble(
        "flat",
        lambda mean, record, limits: mean > limits.flat_groups,
        lambda mean, record, limits: (
            f"in {mean:.0%} of the groups all completions have the same reward, which teaches nothing. If the reward "
            "is low, the task is too hard or the format unknown (cold start with SFTModule first); if it is high, it "
            "is learned: harder samples, a larger sampling.group_size or a stricter reward go on from there"
        ),
    ),
    "truncated completions": Trouble(
        "truncated",
        lambda mean, record, limits: mean > limits.truncated,
        lambda mean, record, limits: (
            f"{mean:.0%} of the completions are cut off by sampling.max_new_tokens, so that they have no answer. Raise "
            "it, or shorten the reasoning (reward.length)"
        ),
    ),
}


class TrainingHealth(Callback):
    """Warns, with advice, when a GRPO run's numbers say that it goes wrong; on by default.

    Each trouble is reported once, and again only after it has passed. What has been seen is part of checkpoints.

    Args:
        limits: When a run is in trouble.
    """

    def __init__(self, limits: HealthLimits = HealthLimits()) -> None:
        self.limits = limits
        self.record = HealthRecord()

    def on_train_batch_end(self, trainer: L.Trainer, *rest: Any, **named: Any) -> None:
        metrics = trainer.callback_metrics
        for line in self.check({name: float(metrics[key]) for name, key in WATCHED.items() if key in metrics}):
            rank_zero_warn(f"step {trainer.global_step}: {line}")

    def check(self, values: Mapping[str, float]) -> list[str]:
        """Takes a step's numbers.

        Args:
            values: Any of reward, entropy, kl, flat and truncated.

        Returns:
            The troubles that have begun, a line each.
        """
        means = self.record.note(values, self.limits.window)
        lines = []
        for name, trouble in TROUBLES.items():
            mean = means.get(trouble.looks_at)
            if mean is None:
                continue
            there = trouble.is_there(mean, self.record, self.limits)
            if there and name not in self.record.warned:
                lines.append(f"{name}: {trouble.message(mean, self.record, self.limits)}")
                self.record.warned.append(name)
            elif not there and name in self.record.warned:
                self.record.warned.remove(name)
        return lines

    def state_dict(self) -> dict[str, Any]:
        """What has been seen."""
        return asdict(self.record)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what had been seen."""
        self.record = HealthRecord(**state_dict)
