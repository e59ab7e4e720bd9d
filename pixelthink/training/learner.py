"""One optimizer step: gradients of all processes, norm, guard, clipping, optimizer, schedule."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from pixelthink.errors import UserError, brief
from pixelthink.parallel.collectives import full_tensor
from pixelthink.parallel.processes import Processes, gradient_norm
from pixelthink.policies.base import PolicyBackbone
from pixelthink.training.optim import OptimizerFactory, SchedulerFactory

REFERENCE = "reference_model."
"""Prefix of the reference's weights. A checkpoint leaves them out: they are made anew from the start."""


class TrainingDiverged(UserError):
    """Too many steps had no finite loss or gradient; one line that says what to try."""


class Learner:
    """Changes a policy's weights, and knows which of them a checkpoint holds.

    Args:
        backbone: Knows the policy.
        optimizer: Makes the optimizer of the parameters that are trained.
        lr_scheduler: Makes the schedule of the learning rate, stepped with the optimizer; None keeps the rate.
        max_grad_norm: Gradients are scaled down to this norm.
        max_skipped_steps: Steps without a finite loss or gradient that a run may leave out; one more ends it.
    """

    def __init__(
        self,
        backbone: PolicyBackbone,
        optimizer: OptimizerFactory,
        lr_scheduler: SchedulerFactory | None,
        max_grad_norm: float,
        max_skipped_steps: int,
    ) -> None:
        if max_skipped_steps < 0:
            raise UserError(f"max_skipped_steps must not be negative, not {max_skipped_steps}")
        if max_grad_norm <= 0:
            raise UserError(f"max_grad_norm must be positive, not {max_grad_norm}")
        self.backbone = backbone
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.max_grad_norm = max_grad_norm
        self.max_skipped_steps = max_skipped_steps
        self.skipped_steps = 0

    def configure(self, policy: nn.Module) -> Any:
        """What `LightningModule.configure_optimizers` returns.

        Raises:
            UserError: no weight would be trained, or the optimizer or its schedule refuses its options.
        """
        parameters = list(trainable_parameters(policy))
        if not parameters:
            raise UserError("model.policy: no weight would be trained; a quantised policy needs model.policy.adapter")
        try:
            optimizer = self.optimizer(parameters)
            schedule = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        except UserError:
            raise
        except (ValueError, TypeError) as error:  # a learning rate below 0, an option that the class has not, …
            raise UserError(f"model.optimizer or model.lr_scheduler: {brief(error)}") from error
        return optimizer if schedule is None else {"optimizer": optimizer, "lr_scheduler": schedule}

    def step(
        self,
        policy: nn.Module,
        optimizer: LightningOptimizer,
        schedule: LRScheduler | None,
        processes: Processes,
        loss: Tensor,
        step: int,
    ) -> Tensor:
        """Takes one step with the gradients of all processes, and clears them.

        A step whose loss or gradient is not finite is left out, on all processes alike, and counted.

        Args:
            policy: The model; its gradients have been computed.
            optimizer: Of the policy.
            schedule: Of the optimizer.
            processes: Of the run.
            loss: Of the step, over all processes; a scalar.
            step: Number of the step, for messages.

        Returns:
            The norm that the gradients had, a scalar.

        Raises:
            TrainingDiverged: more steps than `max_skipped_steps` were left out.
        """
        parameters = list(trainable_parameters(policy))
        processes.add_up_gradients(parameters)
        norm = gradient_norm(parameters)
        whole_norm = full_tensor(norm)
        if self._is_finite(step, float(loss), float(whole_norm)):
            nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
            optimizer.step()
            if schedule is not None:
                schedule.step()
        optimizer.zero_grad()
        return whole_norm

    def _is_finite(self, step: int, loss: float, norm: float) -> bool:
        """Whether both numbers are finite; if not, the step is counted as left out."""
        if math.isfinite(loss) and math.isfinite(norm):
            return True
        self.skipped_steps += 1
        numbers = f"loss {loss}, gradient norm {norm}"
        if self.skipped_steps > self.max_skipped_steps:
            raise TrainingDiverged(
                f"training stopped at step {step}: {self.skipped_steps} steps without a finite loss or gradient "
                f"({numbers}), max_skipped_steps is {self.max_skipped_steps}; go on from an earlier checkpoint with a "
                "lower learning rate, and check that the precision is not float16"
            )
        left_out = f"{self.skipped_steps} of at most {self.max_skipped_steps} such steps"
        warnings.warn(f"step {step} left out: {numbers}; {left_out}", stacklevel=2)
        return False

    def save(self, checkpoint: dict[str, Any], policy: nn.Module) -> None:
        """Adds what a resumed run needs to a checkpoint, and leaves out weights that can be loaded from elsewhere."""
        checkpoint["skipped_steps"] = self.skipped_steps
        kept = checkpointed(checkpoint["state_dict"], self.backbone, policy)
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in kept}

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Takes back what `save` added."""
        self.skipped_steps = checkpoint.get("skipped_steps", 0)


def trainable_parameters(policy: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that an optimizer may change."""
    return (parameter for parameter in policy.parameters() if parameter.requires_grad)


def checkpointed(state: dict[str, Any], backbone: PolicyBackbone, policy: nn.Module) -> set[str]:
    """The names of a module's state that a checkpoint holds.

    Left out are the reference and those of the policy's weights that nobody trains, such as the ones below an adapter.

    Args:
        state: The module's state; the policy's weights are `policy.NAME`.
        backbone: Knows the policy.
        policy: The model.
    """
    weights = {f"policy.{name}" for name in backbone.checkpointed(policy)}
    others = {name for name in state if not name.startswith(("policy.", REFERENCE))}
    return (weights & state.keys()) | others


def check_checkpoint(checkpoint: dict[str, Any], expected: set[str]) -> None:
    """Refuses a checkpoint of another policy.

    Loading is not strict, because checkpoints leave weights out, so nothing else would notice.

    Args:
        checkpoint: As it was read.
        expected: Names of the weights that it must hold, see `checkpointed`.

    Raises:
        UserError: weights are missing, or there are others; one line that names the first.
    """
    if "state_dict" not in checkpoint:  # a sharded checkpoint, which its strategy has loaded
        return
    found = set(checkpoint["state_dict"])
    for names, what in ((expected - found, "lacks"), (found - expected, "has, besides the policy's,")):
        if names:
            raise UserError(f"the checkpoint is another policy's: it {what} {len(names)} weights, {min(names)!r} first")
