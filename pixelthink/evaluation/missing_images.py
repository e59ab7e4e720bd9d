"""The images that an evaluation could not read: told as they come, and an error where there is no other."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from pixelthink.errors import UserError
from pixelthink.failures import IMAGE_FAILURES
from pixelthink.parallel.collectives import all_gather_object
from pixelthink.types import Prediction

MAX_TOLD = 20
"""So many are named on stderr, by each process; all of them stand in the results."""


class MissingImages:
    """The images that one process could not read in an evaluation."""

    def __init__(self) -> None:
        self.samples = 0
        self.causes: Counter[str] = Counter()
        self.first: str | None = None

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Counts the samples of a batch, and names those without an image on stderr."""
        self.samples += len(predictions)
        for prediction in predictions:
            if prediction.failure in IMAGE_FAILURES:
                self._add(prediction.prompt.sample.id, str(prediction.failure), str(prediction.failure_detail))

    def _add(self, sample_id: str, cause: str, reason: str) -> None:
        self.causes[cause] += 1
        self.first = self.first or reason
        told = self.causes.total()
        if told <= MAX_TOLD:
            print(f"pixelthink: sample {sample_id!r} counts as {cause}: {reason}", file=sys.stderr)
        if told == MAX_TOLD:
            print("pixelthink: further images that cannot be read are counted and not named here", file=sys.stderr)

    def check(self) -> None:
        """Looks at what all processes have found, once all samples have been answered.

        Raises:
            UserError: not one image could be read; one line with the first reason and the number of each cause.
        """
        everyone = all_gather_object((self.samples, self.causes, self.first))
        total = sum(samples for samples, _, _ in everyone)
        causes = sum((causes for _, causes, _ in everyone), Counter())
        if causes.total() < total or not total:
            return
        named = ", ".join(f"{cause} {causes[cause]}" for cause in IMAGE_FAILURES if causes[cause])
        first = next(first for _, _, first in everyone if first is not None)
        raise UserError(f"{first} (not one of {total} images could be read: {named})")
