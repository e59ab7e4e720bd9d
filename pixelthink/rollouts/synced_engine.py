"""The only way to sample: a rollout engine together with the policy whose weights it must have.

An engine such as vLLM holds weights of its own. `SyncedEngine` hands it the policy's before it samples, wherever they
are due, and proves that they arrived (`pixelthink.rollouts.parity`). No other object can reach the engine, so no code
can sample from old weights. An engine that samples with the policy module itself passes through unchanged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from pixelthink.errors import UserError
from pixelthink.policies.base import PolicyBackbone
from pixelthink.rollouts.ahead import RolloutAhead
from pixelthink.rollouts.base import RolloutEngine, SamplingConfig, SyncReport
from pixelthink.rollouts.parity import ParityCheck, ParityChecker
from pixelthink.types import PromptBatch, RolloutBatch


@dataclass(frozen=True)
class SyncConfig:
    """When an engine with weights of its own gets the policy's, and how that is checked.

    Attributes:
        every_n_steps: A training rollout may use weights that are fewer optimizer steps than this behind; 1 always
            uses the current ones. Evaluation always does.
        parity_check: Compare engine and policy after each sync and each waking.
        limit: Largest mean |difference| of log-probabilities that passes; None goes by the engine's precision.
        parity_tokens: Most tokens of the rollout that is compared.
    """

    every_n_steps: int = 1
    parity_check: bool = True
    limit: float | None = None
    parity_tokens: int = 24

    def __post_init__(self) -> None:
        if min(self.every_n_steps, self.parity_tokens) < 1:
            raise UserError("RolloutWeightSync: every_n_steps and parity_tokens must be at least 1")
        if self.limit is not None and not self.limit > 0:
            raise UserError(f"RolloutWeightSync: limit must be positive, not {self.limit}")


@dataclass(frozen=True)
class Handover:
    """What one call of `SyncedEngine.hand_over` did.

    Attributes:
        sync: The weights that went over; None where the engine had been asleep and had them still.
        parity: The check behind it; None where `SyncConfig` turns it off.
    """

    sync: SyncReport | None
    parity: ParityCheck | None


class SyncedEngine:
    """Samples from a policy's weights, or stops.

    Args:
        engine: How completions are sampled. It is set up here and belongs to this object from then on.
        backbone: Knows the policy.
        policy: The live model.
        config: When weights go over and how that is checked.
        version: Gives the number of optimizer steps that the policy has seen.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        backbone: PolicyBackbone,
        policy: nn.Module,
        config: SyncConfig = SyncConfig(),
        version: Callable[[], int] = lambda: 0,
    ) -> None:
        engine.setup(backbone, policy)
        self.config = config
        self._engine = engine
        self._weights = engine.sampler  # what holds the weights: the engine, or the one beneath it
        self._backbone = backbone
        self._policy = policy
        self._version = version
        self._parity = ParityChecker(self._weights, backbone, policy, config.limit, config.parity_tokens)
        self._ahead = RolloutAhead()
        self._stamp: int | None = None

    @property
    def name(self) -> str:
        """Dotted path of the engine's class."""
        return f"{type(self._engine).__module__}.{type(self._engine).__qualname__}"

    def generate(
        self, batch: PromptBatch, sampling: SamplingConfig, seed: int, *, evaluating: bool = False
    ) -> RolloutBatch:
        """Samples `sampling.group_size` completions for each prompt, from weights that are not too old.

        Args:
            batch: P prompts.
            sampling: See `SamplingConfig`.
            seed: Equal weights and seed give equal completions.
            evaluating: The weights must be the current ones, whatever `SyncConfig.every_n_steps` allows.

        Raises:
            WeightSyncError: the engine does not sample from the policy's weights; one line.
        """
        self.hand_over(batch, evaluating=evaluating)
        rollout = self._engine.generate(batch, sampling, seed)
        return rollout if self._weights.holds_weights else replace(rollout, policy_version=self._version())

    def hand_over(self, batch: PromptBatch, *, evaluating: bool = False) -> Handover | None:
        """Wakes the engine, gives it newer weights where they are due, and checks that it has them.

        Args:
            batch: What will be sampled next.
            evaluating: As for `generate`.

        Returns:
            What was done; None where there was nothing to do.

        Raises:
            WeightSyncError: the engine does not sample from the policy's weights; one line.
        """
        if not self._weights.holds_weights:
            return None
        self._ahead.wait()  # weights must not change under a rollout
        woken = self._weights.asleep
        if woken:
            self._weights.wake()
        version = self._version()
        report = self._sync(version) if self._is_due(version, evaluating) else None
        if report is None and not (woken and self._is_current()):
            return None
        checked = self.config.parity_check
        return Handover(report, self._parity.check(version, batch, woken=woken) if checked else None)

    def _sync(self, version: int) -> SyncReport:
        """Gives the engine all weights; or the adapter alone, where the engine serves adapters and has the base."""
        if not self._weights.serves_adapters:
            report = self._weights.sync(self._backbone.sync_weights(self._policy), version)
        else:
            base = () if self._weights.version is not None else self._backbone.base_weights(self._policy)
            with tempfile.TemporaryDirectory(prefix="pixelthink-adapter-") as folder:
                self._backbone.write_adapter(self._policy, Path(folder))
                report = self._weights.sync(base, version, Path(folder))
        self._stamp = self._policy_stamp()
        return report

    def _is_due(self, version: int, evaluating: bool) -> bool:
        """Whether the engine needs newer weights than it has."""
        held = self._weights.version
        if held is None:
            return True
        if self._is_current() and version == held:
            return False
        return evaluating or not 0 <= version - held < self.config.every_n_steps

    def _is_current(self) -> bool:
        """Whether nothing has written to the policy since the last sync."""
        return self._stamp == self._policy_stamp()

    def _policy_stamp(self) -> int:
        """A number that grows with each write to a parameter: the sum of torch's own version counters.

        So weights that were loaded between two evaluations are noticed although no optimizer stepped.
        """
        return sum(parameter._version for parameter in self._policy.parameters())

    def begin(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> None:
        """Begins to sample a rollout in a thread, from the weights as they are now; `take` gives it.

        Raises:
            WeightSyncError: as for `generate`.
        """
        self.hand_over(batch)
        self._ahead.begin(self._engine, batch, sampling, seed)

    def take(self, batch: PromptBatch, seed: int) -> RolloutBatch | None:
        """The rollout that was begun for a batch; None if none was, or with another seed."""
        return self._ahead.take(batch, seed)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Surrounds a series of `generate` calls between two updates of the weights; all processes enter together."""
        with self._engine.serving():
            yield

    def sleep(self) -> None:
        """Gives memory back until the next call, where the engine is configured to."""
        self._engine.sleep()

    def close(self) -> None:
        """Ends what the engine started."""
        self._engine.close()

    def state_dict(self) -> dict[str, Any] | None:
        """The rollout that was begun, for a checkpoint; None where none was."""
        return self._ahead.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Takes back what `state_dict` gave."""
        self._ahead.load_state_dict(state)
