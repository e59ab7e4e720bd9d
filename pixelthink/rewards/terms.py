"""Terms under the names that they are logged by: what rewards that are made of terms share."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from pixelthink.components import resolved
from pixelthink.errors import UserError
from pixelthink.rewards.base import RewardTerm
from pixelthink.segmenters.base import Segmenter
from pixelthink.types import ScoringCase


def named_terms(
    owner: str, terms: Mapping[str, RewardTerm], extra: Sequence[RewardTerm] | None, taken: Collection[str] = ()
) -> dict[str, RewardTerm]:
    """A reward's own terms and further ones, each of these under its class name.

    Args:
        owner: Class name of the reward, for the message.
        terms: Its own, by name.
        extra: Further terms.
        taken: Names of parts that are no terms.

    Raises:
        UserError: two parts would be logged under one name.
    """
    named = {name: resolved(term) for name, term in terms.items()}
    for term in extra or []:
        if term.name in named or term.name in taken:
            raise UserError(f"{owner}: two terms are named {term.name!r}")
        named[term.name] = term
    return named


def set_up(terms: Mapping[str, RewardTerm], device: str, segmenter: Segmenter) -> None:
    """Sets all terms up, see `RewardTerm.setup`."""
    for term in terms.values():
        term.setup(device, segmenter)


def values_of(terms: Mapping[str, RewardTerm], cases: Sequence[ScoringCase]) -> list[dict[str, float]]:
    """The value of each term for each response, computed term by term: some terms are cheaper for many at once.

    Raises:
        UserError: a term gives something that is no finite number; names term and sample.
    """
    columns = {name: term.values(cases) for name, term in terms.items()}
    for name, column in columns.items():
        for case, value in zip(cases, column, strict=True):
            if not math.isfinite(value):
                raise UserError(f"sample {case.id}: the reward term {name!r} gives {value}, which is no finite number")
    return [{name: column[i] for name, column in columns.items()} for i in range(len(cases))]
