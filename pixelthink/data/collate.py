"""Samples → `PromptBatch`: resize the image, word the question, move the targets into answer coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from pixelthink.data.prompts import PromptStyle
from pixelthink.data.validation import check_sample
from pixelthink.geometry import AnswerConvention, CoordinateFrame
from pixelthink.timing import now
from pixelthink.types import Prompt, PromptBatch, Sample

Resize = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Collate:
    """Turns samples into prompts; picklable, so that dataloader workers can do it.

    Attributes:
        style: Wording.
        image_size: Model image size (width, height); the aspect ratio is not kept, as in the released code.
        convention: How answers write coordinates.
        rank: This process.
        world_size: Number of processes; each takes every `world_size`-th sample of a batch.
        resize: How images are brought to that size.
    """

    style: PromptStyle
    image_size: tuple[int, int]
    convention: AnswerConvention
    rank: int = 0
    world_size: int = 1
    resize: Resize = "bilinear"

    def prompt(self, sample: Sample) -> Prompt:
        """The prompt of a sample; raises UserError, with its id, where it cannot be used."""
        check_sample(sample)
        frame = CoordinateFrame(sample.image.size, self.image_size, self.convention)
        started = now()
        image = sample.image
        if image.size != self.image_size:
            image = image.resize(self.image_size, Image.Resampling[self.resize.upper()])
        milliseconds = (now() - started) * 1000
        targets = tuple(frame.target_to_answer(target) for target in sample.targets)
        style, asked = self.style, self.style.token_target(sample.id)
        words = style.messages(sample.question, asked)
        return Prompt(
            sample, words, image, frame, targets, milliseconds, answer_style=style.answer_style, token_target=asked
        )

    def __call__(self, samples: Sequence[Sample]) -> PromptBatch:
        places = tuple(self.rank + self.world_size * i for i in range(len(samples)))
        return PromptBatch(tuple(self.prompt(sample) for sample in samples), places)
