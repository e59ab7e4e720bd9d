"""What a supervised cold start shows: which reference reasoning, when, how often and under which prompt."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from pixelthink.data.prompts import PromptStyle
from pixelthink.errors import UserError
from pixelthink.types import LEVELS, Level, Sample, difficulty_level


@dataclass(frozen=True)
class Recipe:
    """One way to respond, when and how often to show it.

    Attributes:
        reasoning: Name of the reference reasoning, a key of the sample's `reasoning`; None leaves its share of the
            samples out of the step, so that a stage need not pay for all that a batch holds.
        weight: Share of the samples, relative to the weights of the other recipes of the same time.
        prompt: Wording of the question for this recipe; None keeps the data's own.
        answer: Whether the response goes on to the answer, or ends with the reasoning (to learn captioning, say).
        first_step: The recipe is shown from this optimizer step on.
        last_step: And until this one, exclusive; None means to the end.
        levels: Difficulty levels of the samples that it is shown for; samples for which no recipe is shown are left out
            of the step.
    """

    reasoning: str | None
    weight: float = 1.0
    prompt: PromptStyle | None = None
    answer: bool = True
    first_step: int = 0
    last_step: int | None = None
    levels: Sequence[Level] = LEVELS

    def __post_init__(self) -> None:
        if not self.levels:
            raise UserError(f"recipe {self.reasoning!r}: levels must not be empty")
        if self.weight <= 0:
            raise UserError(f"recipe {self.reasoning!r}: weight must be positive, not {self.weight}")
        if not 0 <= self.first_step < (self.first_step + 1 if self.last_step is None else self.last_step):
            raise UserError(f"recipe {self.reasoning!r}: no step lies from {self.first_step} to {self.last_step}")

    def shown_at(self, step: int) -> bool:
        """Whether the recipe is shown at an optimizer step."""
        return self.first_step <= step and (self.last_step is None or step < self.last_step)

    def fits(self, sample: Sample) -> bool:
        """Whether it is shown for a sample; one that nobody rated belongs to every level."""
        return sample.difficulty is None or difficulty_level(sample.difficulty) in self.levels


def draw_recipe(recipes: Sequence[Recipe], sample: Sample, step: int) -> Recipe | None:
    """The recipe of a sample, drawn by weight from those shown for it at a step, by a hash of the sample's id.

    Returns:
        None where none is shown for the sample's level, or the one drawn leaves the sample out.
    """
    shown = [recipe for recipe in recipes if recipe.shown_at(step) and recipe.fits(sample)]
    ends = list(accumulate(recipe.weight for recipe in shown))
    point = zlib.crc32(f"recipe:{sample.id}".encode()) / 2**32
    drawn = next((recipe for recipe, end in zip(shown, ends, strict=True) if point * ends[-1] < end), None)
    return None if drawn is None or drawn.reasoning is None else drawn
