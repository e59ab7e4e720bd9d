"""The frozen dataclasses that pass between the stages of a run.

Every coordinate belongs to one of two systems, and the name says which: *original* pixels of the image on disk, or
*answer* coordinates, the numbers the model writes. `pixelthink.geometry.CoordinateFrame` converts between them.
Boxes are `(x1, y1, x2, y2)` with both corners inside the box (the +1 pixel convention of the released code); points
are `(x, y)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from pixelthink.failures import Cause, Flaw, ImageFailure
from pixelthink.geometry import CoordinateFrame, Target
from pixelthink.parsing import Answer

Level = Literal["easy", "medium", "hard"]

LEVELS: tuple[Level, ...] = ("easy", "medium", "hard")


def difficulty_level(difficulty: float) -> Level:
    """Level of a 1–10 difficulty: easy < 3.5 ≤ medium < 5.0 ≤ hard, the thresholds of the released budget rule."""
    if difficulty < 3.5:
        return "easy"
    return "medium" if difficulty < 5.0 else "hard"


@dataclass(frozen=True)
class MissingImage:
    """Why a sample has no image.

    Attributes:
        cause: As it is counted.
        reason: More about it, on one line that names the file.
    """

    cause: ImageFailure
    reason: str


@dataclass(frozen=True)
class Sample:
    """One image with one question, as a `SampleSource` yields it; everything in original pixels.

    Attributes:
        id: Unique within its source.
        image: RGB image of width W and height H.
        question: The query, as a person would ask it.
        mask: Target mask, bool (H, W); None where the truth is unknown (prediction).
        ignore: Pixels that evaluation leaves out, bool (H, W); None means none.
        targets: Objects to be found; empty where the question has no target or the truth is unknown.
        difficulty: Rated difficulty, 1 to 10; None where nobody rated it.
        reasoning: Reference reasoning by style name, for a supervised cold start and for judges.
        meta: Whatever the source wants to keep for reports.
        index: Position in its source; None where nobody counted.
        missing: Why there is no image; `image` is blank then, of the right size where mask and targets are there.
        object_id: What the question asks for, unique within its source: the questions of one object share image and
            target, and count once where evaluation counts objects. None: the sample is an object of its own.
    """

    id: str
    image: Image.Image
    question: str
    mask: np.ndarray | None = None
    ignore: np.ndarray | None = None
    targets: tuple[Target, ...] = ()
    difficulty: float | None = None
    reasoning: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    index: int | None = None
    missing: MissingImage | None = None
    object_id: str | None = None


@dataclass(frozen=True)
class Timings:
    """Milliseconds that one answer took, stage by stage; None where nobody measured a stage.

    Samples are answered in batches, so each number is a *share of a batch's wall-clock time*: what a batch takes
    together is divided evenly by its samples, and decoding in proportion to their tokens. The shares of a batch add up
    to its time, which makes means and throughput right; one sample answered alone would take longer.

    Attributes:
        preparation_ms: From the image to what the model takes: the resize to model size, and the processor's patches
            where the engine makes them apart from the prefill. In a dataloader's worker the resize overlaps with the
            rest.
        prefill_ms: Vision tower and prompt, up to the first token's distribution.
        decoding_ms: All tokens of the response.
        segmentation_ms: From the parsed answer to the mask; 0 where there was nothing to segment.
    """

    preparation_ms: float | None = None
    prefill_ms: float | None = None
    decoding_ms: float | None = None
    segmentation_ms: float | None = None

    @property
    def total_ms(self) -> float | None:
        """Sum of the stages; None unless all were measured."""
        stages = (self.preparation_ms, self.prefill_ms, self.decoding_ms, self.segmentation_ms)
        known = [stage for stage in stages if stage is not None]
        return sum(known) if len(known) == len(stages) else None


@dataclass(frozen=True)
class TokenTarget:
    """How many tokens a prompt asks the response to have (L1, arXiv 2503.04697).

    Attributes:
        tokens: That many.
        at_most: Fewer are as welcome ("Think for maximum N tokens."); else exactly so many ("Think for N tokens.").
    """

    tokens: int
    at_most: bool = False


@dataclass(frozen=True)
class Prompt:
    """A sample made ready for a model.

    Attributes:
        sample: Where it came from.
        messages: Chat messages in the transformers format, with one unexpanded `{"type": "image"}` entry.
        image: The image at model size.
        frame: Original pixels ↔ answer coordinates.
        targets: The sample's targets in answer coordinates.
        preparation_ms: Milliseconds that making `image` took; None where nobody measured it.
        response_start: What the response is made to begin with; the model goes on from there. `Completion.text` has
            only what it added.
        answer_style: Form of the answer that the messages ask for, see `pixelthink.parsing.parse_completion`.
        token_target: Length of the response that the messages ask for; None where they ask for none.
    """

    sample: Sample
    messages: Sequence[Mapping[str, Any]]
    image: Image.Image
    frame: CoordinateFrame
    targets: tuple[Target, ...]
    preparation_ms: float | None = field(default=None, compare=False)
    response_start: str = ""
    answer_style: str = "single"
    token_target: TokenTarget | None = None


@dataclass(frozen=True)
class PromptBatch:
    """The prompts of one step on one process.

    Attributes:
        prompts: P prompts.
        places: Place of each among the step's prompts on all processes; 0 to P − 1 where there is one process. The
            random numbers that a prompt's completions meet are a function of seed and place, so that any number of
            processes samples the same.
        upcoming: The next step's prompts in training; None in the last step of an epoch and in evaluation.
    """

    prompts: tuple[Prompt, ...]
    places: tuple[int, ...] = ()
    upcoming: PromptBatch | None = None

    def __post_init__(self) -> None:
        if not self.places:
            object.__setattr__(self, "places", tuple(range(len(self.prompts))))
        if len(self.places) != len(self.prompts):
            raise ValueError(f"{len(self.places)} places for {len(self.prompts)} prompts")

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Completion:
    """One sampled response.

    Attributes:
        token_ids: Sampled token ids, the end token included where it was sampled.
        logprobs: Log-probability of each under the sampling weights at temperature 1, before any token was forbidden.
        text: Decoded without special tokens, as the released code decodes.
        finish_reason: "stop" where the end token was sampled, "length" where the limit cut it off.
        reasoning_tokens: Number of tokens inside `<think>`, 0 where there is none.
        uncertainty: Mean top-2 uncertainty of the tokens in [0, 1]; None where the engine gave no top-2.
        answer_tokens: Number of tokens inside `<answer>`, 0 where there is none; None where nobody counted them.
        timings: The engine's share of the answer's time: its part of the preparation, prefill and decoding.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: Literal["stop", "length"]
    reasoning_tokens: int
    uncertainty: float | None
    answer_tokens: int | None = None
    timings: Timings = field(default=Timings(), compare=False)


@dataclass(frozen=True)
class RolloutBatch:
    """Completions of a prompt batch, group-major: the `group_size` completions of prompt 0 come first.

    Attributes:
        prompts: P prompts.
        completions: P × group_size completions.
        group_size: Completions per prompt.
        policy_version: Number of optimizer steps the sampling weights had seen.
        seconds: Wall-clock time of the sampling.
    """

    prompts: tuple[Prompt, ...]
    completions: tuple[Completion, ...]
    group_size: int
    policy_version: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if len(self.completions) != len(self.prompts) * self.group_size:
            raise ValueError(
                f"{len(self.completions)} completions for {len(self.prompts)} prompts × {self.group_size} a group"
            )

    def prompt_of(self, index: int) -> Prompt:
        """The prompt of completion `index`."""
        return self.prompts[index // self.group_size]


@dataclass(frozen=True)
class ScoringCase:
    """All that a reward may look at: one response and what is known of its question.

    Attributes:
        id: The sample's id, named in errors.
        text: The whole response.
        answer: `text`, parsed; in answer coordinates.
        targets: The truth, in answer coordinates.
        difficulty: 1 to 10, or None where nobody rated it.
        uncertainty: In [0, 1], or None where nobody measured it.
        reasoning_tokens: Tokens inside `<think>`, or None where nobody counted them.
        prompt: The question with its image, true mask and frame; None for a logged response, which has only text.
        response_tokens: Tokens of the whole response, the end token included, or None where nobody counted them.
        token_target: Length that the prompt asked for, or None where it asked for none.
    """

    id: str
    text: str
    answer: Answer
    targets: tuple[Target, ...]
    difficulty: float | None = None
    uncertainty: float | None = None
    reasoning_tokens: int | None = None
    prompt: Prompt | None = None
    response_tokens: int | None = None
    token_target: TokenTarget | None = None


@dataclass(frozen=True)
class Score:
    """The reward of one response and how it came about.

    Attributes:
        reward: What GRPO sees.
        parts: Accuracy and format terms by name.
        length_used: Words or tokens that count against the budget; None where the reward does not look at length.
        length_budget: The budget; None where this response has none.
        length_score: Factor in [0, 1] (or beyond, as the rule says); 1 where length does not count.
    """

    reward: float
    parts: Mapping[str, float]
    length_used: int | None = None
    length_budget: float | None = None
    length_score: float = 1.0


@dataclass(frozen=True)
class RewardOutput:
    """Rewards of a rollout, group-major.

    Attributes:
        total: float32 (N,).
        scores: N scores, one per completion.
    """

    total: Tensor
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Prediction:
    """What evaluation knows of one sample once it has been answered and segmented.

    Attributes:
        prompt: The question.
        completion: The response.
        answer: The response, parsed; in answer coordinates.
        mask: Predicted mask in original pixels, bool (H, W); empty where the answer could not be used.
        failure: Why the mask is empty and the sample scores 0, or None.
        objects: The answered objects in original pixels, inside the image; none where the answer could not be used.
        timings: Where the time went, from the image to the mask.
        flaws: What is odd about the answer and did not keep it from being segmented.
        failure_detail: More about the failure, on one line, where there is more to say.
    """

    prompt: Prompt
    completion: Completion
    answer: Answer
    mask: np.ndarray
    failure: Cause | None
    objects: tuple[Target, ...] = ()
    timings: Timings = field(default=Timings(), compare=False)
    flaws: tuple[Flaw, ...] = ()
    failure_detail: str | None = None

    def to(self, *target: Any, **options: Any) -> Prediction:
        """Itself: Lightning moves what it collects, and there is no tensor to move."""
        return self
