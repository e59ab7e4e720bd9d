"""Steps whose loss or gradient is not finite are left out, counted, and end the run when there are too many."""

from __future__ import annotations

import math
import warnings


class TrainingDiverged(ValueError):
    """Too many steps had no finite loss or gradient; one line that says what to try."""


class StepGuard:
    """Decides whether an optimizer may step.

    It is asked with numbers that are sums over all processes, so all decide alike.

    Args:
        limit: Steps that may be left out in a run; one more ends it.
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError(f"max_skipped_steps must not be negative, not {limit}")
        self.limit = limit
        self.skipped = 0

    def allows(self, step: int, loss: float, gradient_norm: float) -> bool:
        """Whether both numbers are finite; if not, the step is counted as left out.

        Args:
            step: The optimizer's step, for the message.
            loss: Loss of the step.
            gradient_norm: Norm of its whole gradient, before clipping.

        Raises:
            TrainingDiverged: if more steps than the limit were left out.
        """
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            return True
        self.skipped += 1
        numbers = f"loss {loss}, gradient norm {gradient_norm}"
        if self.skipped > self.limit:
            raise TrainingDiverged(
                f"training stopped at step {step}: {self.skipped} steps without a finite loss or gradient ({numbers}), "
                f"max_skipped_steps is {self.limit}; go on from an earlier checkpoint with a lower learning rate, and "
                "check that the precision is not float16"
            )
        warnings.warn(
            f"step {step} left out: {numbers}; {self.skipped} of at most {self.limit} such steps", stacklevel=2
        )
        return False
