"""What keeps a run on course: steps left out, schedules, and the number by which the best checkpoint is chosen."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from pixelthink.evaluation.config import EvaluationConfig, giou_within_budget
from pixelthink.parallel.processes import Processes
from pixelthink.training.learner import Learner, TrainingDiverged
from pixelthink.training.optim import TransformersSchedule


class Steps:
    """A learner with one weight of 1, whose gradient the test gives; plain gradient descent with a rate of 1."""

    def __init__(self, limit: int) -> None:
        self.policy = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.policy.weight)
        self.learner = Learner(
            None,  # type: ignore[arg-type]  # nothing here is saved
            lambda parameters: torch.optim.SGD(parameters, lr=1.0),
            None,
            max_grad_norm=1e30,
            max_skipped_steps=limit,
        )
        self.optimizer = self.learner.configure(self.policy)

    def step(self, loss: float, gradient: float) -> float:
        """Takes step 7; returns the weight after it."""
        self.policy.weight.grad = torch.tensor([[gradient]])
        processes = Processes(SingleDeviceStrategy(torch.device("cpu")))
        self.learner.step(self.policy, self.optimizer, None, processes, torch.tensor(loss), 7)
        assert self.policy.weight.grad is None
        return float(self.policy.weight.detach())


def test_finite_steps_are_taken_in_silence() -> None:
    steps = Steps(limit=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert steps.step(-0.1, 0.25) == 0.75
    assert steps.learner.skipped_steps == 0


@pytest.mark.parametrize(("loss", "gradient"), [(math.nan, 1.0), (0.5, math.inf), (-math.inf, math.nan)])
def test_others_are_left_out_and_counted_and_end_the_run(loss: float, gradient: float) -> None:
    steps = Steps(limit=2)
    for count in (1, 2):
        with pytest.warns(UserWarning, match=f"step 7 left out: .*; {count} of at most 2 such steps"):
            assert steps.step(loss, gradient) == 1.0
    with pytest.raises(TrainingDiverged, match="training stopped at step 7: 3 steps without a finite loss"):
        steps.step(loss, gradient)


def test_gradients_are_scaled_down_to_the_largest_norm() -> None:
    steps = Steps(limit=0)
    steps.learner.max_grad_norm = 0.5
    assert steps.step(0.1, 4.0) == pytest.approx(0.5, abs=1e-6)


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="max_skipped_steps must not be negative"):
        Steps(-1)


def rates(steps: int, **options: object) -> list[float]:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    schedule = TransformersSchedule(optimizer, **options)  # type: ignore[arg-type]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_cosine_with_warm_up_is_what_it_says() -> None:
    warm = [0.0, 0.5, 1.0, 1.5]
    decay = [1 + math.cos(math.pi * step / 16) for step in range(16)]
    assert rates(20, total_steps=20, warmup_steps=4) == pytest.approx(warm + decay)


def test_the_other_schedules_are_what_they_say() -> None:
    assert rates(5, total_steps=4, name="linear") == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0])
    assert rates(4, total_steps=9, warmup_steps=2, name="constant_with_warmup") == [0.0, 1.0, 2.0, 2.0]
    assert rates(3, total_steps=9, name="constant") == [2.0, 2.0, 2.0]


def test_schedules_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="warmup_steps 5 must lie in 0 to total_steps 4"):
        rates(1, total_steps=4, warmup_steps=5)
    with pytest.raises(ValueError, match="constant has no warm-up"):
        rates(1, total_steps=4, warmup_steps=2, name="constant")


def test_whatever_keeps_the_budget_beats_all_that_does_not() -> None:
    assert giou_within_budget(0.6, 48.0, 48.0) == 0.6
    assert giou_within_budget(0.9, 72.0, 48.0) == -0.5
    order = [(0.9, 96.0), (0.1, 60.0), (0.0, 48.0), (0.3, 10.0), (0.7, 48.0)]
    scores = [giou_within_budget(giou, tokens, 48.0) for giou, tokens in order]
    assert scores == sorted(scores)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"token_budget must be positive, got 0\.0"):
        EvaluationConfig(token_budget=0.0)
