"""The next rollout, sampled while the policy trains on this one: one step off-policy, never more.

A rollout is begun with the weights from before a step's update and is trained on after it. What was begun belongs to a
checkpoint: it was sampled by weights that are gone once the step is over, so a resumed run could not sample it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any

from pixelthink.rollouts.base import RolloutEngine, SamplingConfig
from pixelthink.types import Completion, PromptBatch, RolloutBatch, Timings


@dataclass(frozen=True)
class Begun:
    """A rollout under way, or one that a checkpoint kept.

    Attributes:
        samples: Ids of its prompts' samples.
        seed: What it is sampled with.
        rollout: What comes of it.
    """

    samples: tuple[str, ...]
    seed: int
    rollout: Future[RolloutBatch]


class RolloutAhead:
    """Holds at most one rollout that was begun before its step."""

    def __init__(self) -> None:
        self._begun: Begun | None = None
        self._kept: Mapping[str, Any] | None = None

    def begin(self, engine: RolloutEngine, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> None:
        """Begins to sample in a thread. The engine's weights must not change before `wait`."""
        self.wait()
        thread = ThreadPoolExecutor(1, thread_name_prefix="rollout-ahead")
        self._begun = Begun(_ids(batch), seed, thread.submit(engine.generate, batch, sampling, seed))
        thread.shutdown(wait=False)

    def wait(self) -> None:
        """Waits until nothing is being sampled any more; what went wrong is said by `take` or `state_dict`."""
        if self._begun is not None:
            wait([self._begun.rollout])

    def take(self, batch: PromptBatch, seed: int) -> RolloutBatch | None:
        """The rollout that was begun for a batch, or None if it was not, or was begun with another seed.

        Raises:
            OSError: it could not be sampled; or whatever else went wrong in the thread.
        """
        begun, self._begun = self._begun, None
        kept, self._kept = self._kept, None
        if begun is not None:
            rollout = begun.rollout.result()
            return rollout if (begun.samples, begun.seed) == (_ids(batch), seed) else None
        if kept is not None and (tuple(kept["samples"]), kept["seed"]) == (_ids(batch), seed):
            completions = tuple(_completion(row) for row in kept["completions"])
            return RolloutBatch(batch.prompts, completions, kept["group_size"], kept["policy_version"])
        return None

    def state_dict(self) -> dict[str, Any] | None:
        """What was begun, once it is complete, without its images; None where nothing was begun.

        Raises:
            OSError: it could not be sampled; or whatever else went wrong in the thread. So nothing is saved that a run
                could not resume identically, and the checkpoint before stays the last.
        """
        if self._begun is None:
            return None
        rollout = self._begun.rollout.result()
        return {
            "samples": list(self._begun.samples),
            "seed": self._begun.seed,
            "group_size": rollout.group_size,
            "policy_version": rollout.policy_version,
            "completions": [asdict(completion) for completion in rollout.completions],
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Takes back what `state_dict` gave; the prompts come with the batch that it was sampled for."""
        self._begun, self._kept = None, state


def _ids(batch: PromptBatch) -> tuple[str, ...]:
    return tuple(prompt.sample.id for prompt in batch.prompts)


def _completion(row: Mapping[str, Any]) -> Completion:
    return Completion(
        **{
            **row,
            "token_ids": tuple(row["token_ids"]),
            "logprobs": tuple(row["logprobs"]),
            "timings": Timings(**row["timings"]),
        }
    )
