"""The judge swap point: how good is the reasoning, 0 to 10."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, get_args

from PIL import Image

from pixelthink.errors import UserError

JudgeFailure = Literal["timeout", "unreachable", "refused", "unusable_answer"]
"""Why a sample has no rating: the judge did not answer in time; could not be reached; answered with an HTTP error; gave
answers that are no rating."""

JUDGE_FAILURES: tuple[JudgeFailure, ...] = get_args(JudgeFailure)


@dataclass(frozen=True)
class JudgedSample:
    """What a judge is shown.

    Attributes:
        id: The sample's id.
        question: What was asked.
        reasoning: What stands inside `<think>`.
        references: Reference reasoning by style.
        image: The image at original resolution; None where it is missing.
    """

    id: str
    question: str
    reasoning: str
    references: Mapping[str, str] = field(default_factory=dict)
    image: Image.Image | None = None


@dataclass(frozen=True)
class Verdict:
    """The rating of one sample.

    Attributes:
        score: 0 to 10; None where there is no rating.
        failure: Why there is none, or None.
        detail: More about the failure, on one line.
    """

    score: float | None
    failure: JudgeFailure | None = None
    detail: str | None = None


class Judge(ABC):
    """Rates reasoning. A sample without any reasoning is rated like any other."""

    note: str
    """One line for the results: who judges, and what the ratings may be compared with."""

    metric_prefix: str = ""
    """Stands before the names of the metrics, where the ratings are on another scale than RScore."""

    concurrency: int = 1
    """Samples that are rated at a time."""

    def setup(self) -> None:  # noqa: B027
        """Opens files. Constructors stay cheap."""

    @abstractmethod
    def rate(self, sample: JudgedSample) -> Verdict:
        """Rates one sample; may be called by several threads.

        Raises:
            UserError: the sample lacks what this judge needs; names it.
        """

    _pool: ThreadPoolExecutor | None = None

    def submit(self, samples: Sequence[JudgedSample]) -> list[Future[Verdict]]:
        """Starts rating samples in the background."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        return [self._pool.submit(self.rate, sample) for sample in samples]

    def close(self) -> None:
        """Cancels the ratings that have not started."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def reference_of(sample: JudgedSample, style: str, judge: str) -> str:
    """A sample's reference reasoning of a style.

    Raises:
        UserError: it has none; names it.
    """
    if style not in sample.references:
        known = ", ".join(sample.references) or "none"
        raise UserError(f"sample {sample.id!r} has no {style!r} reasoning for {judge}; it has: {known}")
    return sample.references[style]
