"""Each trouble is reported, once and with advice; a healthy run is left in peace."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from pixelthink.callbacks.training_health import TROUBLES, HealthLimits, TrainingHealth

Series = Callable[[int], float]

HEALTHY: dict[str, Series] = {
    "reward": lambda step: 2.0 + step / 50 + 0.4 * math.sin(step),
    "entropy": lambda step: 0.9 - 0.004 * step,
    "kl": lambda step: 0.001 * step,
    "flat": lambda step: 0.3 + 0.2 * (step % 3),
    "truncated": lambda step: 0.1 * (step % 2),
}
GOES_WRONG: dict[str, tuple[str, Series, str]] = {
    "reward collapse": ("reward", lambda step: 3.0 if step < 60 else 0.2, "Go back to a checkpoint"),
    "entropy collapse": ("entropy", lambda step: 0.8 if step < 60 else 0.001, "Raise grpo.entropy_coef"),
    "KL blow-up": ("kl", lambda step: 0.02 if step < 60 else 4.0, "Raise grpo.kl_coef"),
    "equal rewards": ("flat", lambda step: 0.2 if step < 60 else 1.0, "cold start with SFTModule"),
    "truncated completions": (
        "truncated",
        lambda step: 0.0 if step < 60 else 0.9,
        "cut off by sampling.max_new_tokens",
    ),
}


def lines(series: dict[str, Series], steps: int = 120, health: TrainingHealth | None = None) -> list[tuple[int, str]]:
    watch = health or TrainingHealth()
    return [(step, line) for step in range(steps) for line in watch.check({n: f(step) for n, f in series.items()})]


def test_a_healthy_run_is_left_in_peace() -> None:
    assert lines(HEALTHY) == []


def test_every_trouble_has_a_case() -> None:
    assert GOES_WRONG.keys() == TROUBLES.keys()


@pytest.mark.parametrize("trouble", GOES_WRONG)
def test_each_trouble_is_reported_once_with_advice(trouble: str) -> None:
    name, series, advice = GOES_WRONG[trouble]
    found = lines({**HEALTHY, name: series})
    assert len(found) == 1
    step, line = found[0]
    assert 60 < step < 80
    assert line.startswith(f"{trouble}: ")
    assert advice in line
    assert "\n" not in line


def test_a_trouble_that_came_back_is_reported_again() -> None:
    found = lines({"kl": lambda step: 4.0 if 20 <= step < 50 or step >= 90 else 0.0})
    assert [line.split(":")[0] for _, line in found] == ["KL blow-up"] * 2


def test_nothing_is_said_before_a_window_has_passed() -> None:
    assert lines({"kl": lambda step: 9.0}, steps=19) == []
    assert len(lines({"kl": lambda step: 9.0}, steps=3, health=TrainingHealth(HealthLimits(window=2)))) == 1


def test_rewards_that_start_below_zero_do_not_collapse_by_that() -> None:
    assert lines({"reward": lambda step: -1.0 + 0.1 * math.sin(step)}) == []


def test_a_resumed_run_goes_on_watching() -> None:
    first, second = TrainingHealth(), TrainingHealth()
    series: dict[str, Series] = {**HEALTHY, "reward": GOES_WRONG["reward collapse"][1]}
    assert lines(series, 60, first) == []
    second.load_state_dict(first.state_dict())
    assert len(lines({**series, "reward": lambda step: 0.2}, 30, second)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be at least 1"),
        ({"kl": 0.0}, "kl must be positive"),
        ({"truncated": 1.5}, r"truncated must lie in \[0, 1\]"),
    ],
)
def test_limits_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HealthLimits(**options)  # type: ignore[arg-type]
