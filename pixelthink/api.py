"""The Python API: load a policy, load a segmenter, ask, evaluate, score responses. `docs/python.md` shows it.

Paths in the examples are those of a clone of the repository; its tiny policy knows coloured shapes.

>>> import pixelthink
>>> policy = pixelthink.load_policy("assets/tiny_policy", prompt="ShortPrompt", image_size=(112, 112))
>>> reply = pixelthink.ask(policy, "assets/shapes.png", "the rightmost shape", max_new_tokens=150)
>>> reply.mask.shape, bool(reply.mask.any()), reply.failure
((112, 112), True, None)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import nn

from pixelthink.answering.answerer import Answerer
from pixelthink.callbacks.prediction_writer import draw_overlay
from pixelthink.cli.layers import reward_of
from pixelthink.cli.messages import instantiate
from pixelthink.cli.registry import components, load_components
from pixelthink.data.base import SampleSource
from pixelthink.data.collate import Collate
from pixelthink.data.evaluation_dataset import EvaluationDataset
from pixelthink.data.images import open_rgb
from pixelthink.data.logged_responses import LoggedResponses
from pixelthink.data.prompts import PixelThinkPrompt, PromptStyle
from pixelthink.errors import UserError
from pixelthink.evaluation.config import EvaluationConfig
from pixelthink.evaluation.evaluator import Evaluation, Evaluator
from pixelthink.evaluation.result_folder import ResultFolder
from pixelthink.evaluation.run_header import fingerprint
from pixelthink.geometry import Box, Point
from pixelthink.policies.base import PolicyBackbone
from pixelthink.policies.loading import family_of
from pixelthink.rewards.base import Reward
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.rollouts.hf import HFEngine
from pixelthink.segmenters.base import Segmenter
from pixelthink.segmenters.grabcut import GrabCut
from pixelthink.types import Prediction, PromptBatch, Sample, Score


class Policy:
    """A loaded policy and the way it is asked; `load_policy` makes one.

    Attributes:
        backbone: Knows the model's family.
        model: The transformers model.
        prompt: How questions are worded.
        image_size: (width, height) that images are resized to.
    """

    def __init__(
        self, backbone: PolicyBackbone, model: nn.Module, prompt: PromptStyle, image_size: tuple[int, int]
    ) -> None:
        self.backbone = backbone
        self.model = model
        self.prompt = prompt
        self.image_size = image_size
        self._answerers: dict[int, Answerer] = {}

    def prompts(self, samples: Iterable[Sample]) -> PromptBatch:
        """Samples made ready for the model."""
        return Collate(self.prompt, self.image_size, self.backbone.convention)(list(samples))

    def answerer(self, segmenter: Segmenter) -> Answerer:
        """What answers with this policy and a segmenter."""
        known = self._answerers.setdefault(id(segmenter), Answerer(self.backbone, HFEngine(), segmenter))
        known.start(self.model, str(next(self.model.parameters()).device))
        return known


@dataclass(frozen=True)
class Reply:
    """The answer to one question.

    Attributes:
        text: The whole response.
        reasoning: The text inside `<think>`.
        boxes: Box of each answered object, `(x1, y1, x2, y2)` in pixels of the image.
        points: The two points of each answered object, `(x, y)` each.
        mask: bool (H, W); empty where the answer could not be used.
        failure: Why it could not be used, or None.
        reasoning_tokens: Tokens inside `<think>`.
        uncertainty: Mean top-2 uncertainty of the tokens, 0 to 1.
        prediction: Everything that is known of the answer.
    """

    text: str
    reasoning: str
    boxes: tuple[Box, ...]
    points: tuple[tuple[Point, Point], ...]
    mask: np.ndarray = field(repr=False)
    failure: str | None
    reasoning_tokens: int
    uncertainty: float | None
    prediction: Prediction = field(repr=False)

    def overlay(self) -> Image.Image:
        """The image with mask, boxes and points on it."""
        return draw_overlay(self.prediction)


def load_policy(
    path: str | Path,
    *,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    prompt: str | PromptStyle = PixelThinkPrompt(),
    image_size: tuple[int, int] = (840, 840),
) -> Policy:
    """Loads a Qwen2.5-VL or Qwen3-VL policy.

    Args:
        path: Folder in Hugging Face format, or a hub id.
        device: Where the model computes, e.g. "cuda".
        dtype: Precision of the weights; None takes float32 on a CPU and bfloat16 elsewhere.
        prompt: How questions are worded: a `PromptStyle`, or the name of one. The default is PixelThink's released one.
        image_size: (width, height) that images are resized to; the released data uses 840 × 840.

    Raises:
        UserError: there is no such model, or its family is not known; or no such prompt.

    >>> policy = load_policy("assets/tiny_policy", prompt="ShortPrompt", image_size=(112, 112))
    >>> type(policy.backbone).__name__
    'Qwen25VL'
    """
    load_components()
    precision = dtype or ("float32" if device == "cpu" else "bfloat16")
    family: Any = family_of(str(path))
    backbone = family(str(path), dtype=precision)
    backbone.setup()
    style = _component("prompt style", prompt)() if isinstance(prompt, str) else prompt
    return Policy(backbone, backbone.load_model().to(device).eval(), style, image_size)


def load_segmenter(name: str = "GrabCut", **options: Any) -> Segmenter:
    """Makes a segmenter; its weights load when it is first used.

    Args:
        name: Class name: GrabCut needs no weights; SAM2, HFSAM2 and HFSAM3 take a `checkpoint`.
        **options: Arguments of the class.

    Raises:
        UserError: there is no such segmenter.

    >>> type(load_segmenter("GrabCut")).__name__
    'GrabCut'
    """
    load_components()
    return _component("segmenter", name)(**options)


def ask(
    policy: Policy,
    image: str | Path | Image.Image,
    question: str,
    segmenter: Segmenter | None = None,
    *,
    max_new_tokens: int = 1024,
    temperature: float = 0.0,
    seed: int = 0,
) -> Reply:
    """Asks one question about one image.

    Args:
        policy: From `load_policy`.
        image: A file, or an RGB picture.
        question: What to find.
        segmenter: Turns the answer into a mask; `GrabCut` by default.
        max_new_tokens: Limit of the response's length in tokens.
        temperature: Softmax temperature; 0 takes the most likely token.
        seed: Seed of the sampling.

    Raises:
        UserError: the image cannot be read.

    >>> policy = load_policy("assets/tiny_policy", prompt="ShortPrompt", image_size=(112, 112))
    >>> reply = ask(policy, "assets/shapes.png", "the rightmost shape", max_new_tokens=150)
    >>> len(reply.boxes), reply.reasoning_tokens > 0, reply.overlay().size
    (1, True, (112, 112))
    """
    picture = image if isinstance(image, Image.Image) else open_rgb(Path(image))
    name = "image" if isinstance(image, Image.Image) else Path(image).stem
    batch = policy.prompts([Sample(name, picture.convert("RGB"), question)])
    penalty = policy.backbone.repetition_penalty()
    sampling = SamplingConfig(1, max_new_tokens, temperature, repetition_penalty=penalty)
    prediction = policy.answerer(_or_default(segmenter)).answer(batch, sampling, seed)[0]
    return Reply(
        text=prediction.completion.text,
        reasoning=prediction.answer.reasoning,
        boxes=tuple(target.box_xyxy for target in prediction.objects),
        points=tuple(target.points_xy for target in prediction.objects),
        mask=prediction.mask,
        failure=prediction.failure,
        reasoning_tokens=prediction.completion.reasoning_tokens,
        uncertainty=prediction.completion.uncertainty,
        prediction=prediction,
    )


def evaluate(
    policy: Policy,
    source: SampleSource,
    segmenter: Segmenter | None = None,
    config: EvaluationConfig = EvaluationConfig(),
    *,
    batch_size: int = 16,
    output: str | Path | None = None,
) -> Evaluation:
    """Answers and measures all samples of a source.

    Args:
        policy: From `load_policy`.
        source: Samples with true masks, e.g. `pixelthink.data.sources.reasonseg.ReasonSeg`.
        segmenter: Turns answers into masks; `GrabCut` by default.
        config: Protocol, what counts once, how answers are sampled.
        batch_size: Samples answered together.
        output: Folder for `samples.jsonl`, `metrics.json`, `run.json` and `report.html`; None writes none. An
            evaluation that was interrupted there goes on.

    Raises:
        UserError: a sample has no true mask, two have one id, or the folder cannot be used.

    >>> from pixelthink.data.sources.shape_scenes import ShapeScenes
    >>> policy = load_policy("assets/tiny_policy", prompt="ShortPrompt", image_size=(112, 112))
    >>> short = EvaluationConfig(sampling=SamplingConfig(group_size=1, max_new_tokens=150, temperature=0.0))
    >>> result = evaluate(policy, ShapeScenes(split="test", size=4), config=short)
    >>> result.metrics["n"], 0 <= result.metrics["giou"] <= 1
    (4.0, True)
    """
    source.setup()
    samples = EvaluationDataset(source)
    answerer = policy.answerer(_or_default(segmenter))
    evaluator = Evaluator(config)
    settings = {
        "stage": "test",
        "protocol": config.protocol,
        "weights": fingerprint(policy.model),
        "acceptance": config.accepts,
        "sampling": vars(config.sampling_of(policy.backbone)),
        "engine": answerer.engine.name,
        "segmenter": type(answerer.segmenter).__qualname__,
        "data": type(source).__qualname__,
        "prompt": type(policy.prompt).__qualname__,
        "image_size": list(policy.image_size),
    }
    evaluator.begin(None if output is None else ResultFolder(output), settings)
    with torch.no_grad(), answerer.engine.serving():
        for start in range(0, len(samples), batch_size):
            rows = range(start, min(start + batch_size, len(samples)))
            evaluator.step(answerer, policy.prompts(samples[row] for row in rows))
    return evaluator.finish({"policy": getattr(policy.backbone, "path", None)})


def score_responses(rows: Iterable[Mapping[str, Any]], reward: Reward | str | Path) -> list[Score]:
    """Scores logged responses under a reward.

    Args:
        rows: Each with `id`, `response`, `solution` and what the reward asks for, see `LoggedResponses`.
        reward: A reward, or a config that names one, e.g. "configs/reward/pixelthink.yaml".

    Raises:
        UserError: a row lacks a field or has a wrong one; names the sample and the field. Or the config is wrong.

    >>> answer = '{"bbox": [10, 10, 20, 20], "points_1": [14, 14], "points_2": [15, 15]}'
    >>> row = {
    ...     "id": "a",
    ...     "response": f"<think>The red one.</think><answer>{answer}</answer>",
    ...     "solution": "<box>(10,10),(20,20)</box><points>(14,14),(15,15)</points>",
    ...     "difficulty": 2.0,
    ... }
    >>> score_responses([row], "configs/reward/pixelthink.yaml")[0].reward
    5.0
    """
    logged = LoggedResponses(reward if isinstance(reward, Reward) else _reward(str(reward)))
    scores = []
    for number, row in enumerate(rows, start=1):
        try:
            scores.append(logged.score(row))
        except UserError as error:
            raise UserError(f"row {number} (id {row.get('id')!r}): {error}") from None
    return scores


def _reward(config: str) -> Reward:
    """The reward of a config."""
    load_components()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--reward", type=Reward, required=True)
    return instantiate(parser, parser.parse_args([f"--config={reward_of(config)}"])).reward


def _component(kind: str, name: str) -> type[Any]:
    """A component's class by its short name.

    Raises:
        UserError: there is none of that name.
    """
    known = components(kind)
    if name not in known:
        raise UserError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    return known[name]


_GRABCUT = GrabCut()


def _or_default(segmenter: Segmenter | None) -> Segmenter:
    return _GRABCUT if segmenter is None else segmenter
