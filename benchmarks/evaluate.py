"""Evaluation by this package against a plain loop, one image at a time, on one model, data set and segmenter.

    python benchmarks/evaluate.py                       # GrabCut, then SAM 2 tiny with random weights
    python benchmarks/evaluate.py --segmenters GrabCut --images 64

The plain loop does what the released script does for each sample: resize, `model.generate`, parse, embed the image,
predict, compare. Both answer greedily with the shipped tiny policy; the evaluator runs as `test` does, metrics and all.
What both answered, and the masks, are compared, so that the ratio is of equal work. Then: what the embeddings of a
cached image cost, and what `MaskIoU` adds to a training step. SAM 2's weights are random, since there are none here:
that changes masks, not times. On a CPU SAM 2's image encoder is nearly all of the work, so there the ratio is bounded
by the number of questions about an image, which share one embedding.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from pixelthink.answering.acceptance import answered_objects
from pixelthink.data.base import SampleSource
from pixelthink.data.collate import Collate
from pixelthink.data.datamodule import PromptData
from pixelthink.data.prompts import ShortPrompt
from pixelthink.data.sources.shape_scenes import IMAGE_SIZE, draw_scene, rate_difficulty, sample_query, sample_scene
from pixelthink.evaluation.config import EvaluationConfig
from pixelthink.geometry import target_from_mask
from pixelthink.parsing import parse_completion
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.rewards.composite import PixelThinkReward
from pixelthink.rewards.length import NoLengthScore
from pixelthink.rewards.mask_iou import MaskIoU
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.rollouts.hf import HFEngine
from pixelthink.segmenters.base import SegmentationRequest, Segmenter
from pixelthink.segmenters.grabcut import GrabCut
from pixelthink.segmenters.sam2 import SAM2
from pixelthink.training.grpo_module import GRPOModule
from pixelthink.types import Prediction, Prompt, PromptBatch, RolloutBatch, Sample

POLICY = Path(__file__).parent.parent / "assets" / "tiny_policy"
TOKENS = 150
Answered = list[tuple[str, np.ndarray]]
"""Text and mask of each sample."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segmenters", nargs="+", choices=["GrabCut", "SAM2"], default=["GrabCut", "SAM2"])
    parser.add_argument("--images", type=int, nargs="+", default=[32, 3], help="images for each segmenter")
    parser.add_argument("--questions", type=int, default=5, help="questions about each image")
    parser.add_argument("--batch-size", type=int, default=96, help="prompts per batch of the evaluator")
    parser.add_argument("--rounds", type=int, default=2, help="both in turn so often; the medians count")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        for name, images in zip(options.segmenters, options.images, strict=False):
            segmenter = GrabCut() if name == "GrabCut" else SAM2(str(random_sam2(Path(folder) / "sam2.pt")))
            segmenter.setup()
            compare(name, segmenter, Scenes(images, options.questions), options)
            reward_cost(name, segmenter, prompts=8 if name == "GrabCut" else 2)
            if isinstance(segmenter, SAM2):
                embedding_cost(segmenter)


def random_sam2(path: Path) -> Path:
    """A checkpoint of SAM 2.1 tiny with seeded random weights."""
    from sam2.build_sam import build_sam2

    torch.manual_seed(0)
    torch.save({"model": build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu").state_dict()}, path)
    return path


class Scenes(SampleSource):
    """Miniature scenes with several questions about each, as referring and reasoning sets have them.

    Args:
        images: Number of scenes.
        questions: Questions about each.
    """

    def __init__(self, images: int, questions: int) -> None:
        self.images = images
        self.questions = questions

    def __len__(self) -> int:
        return self.images * self.questions

    def __getitem__(self, index: int) -> Sample:
        scene = sample_scene(np.random.default_rng(index // self.questions))
        rng = np.random.default_rng([1, index])
        query = None
        while query is None:
            query = sample_query(scene, str(rng.choice(["easy", "medium", "hard"])), rng)
        mask = scene[query.target].mask()
        image = Image.fromarray(draw_scene(scene))
        difficulty = rate_difficulty(scene, query)
        return Sample(str(index), image, query.text, mask, targets=(target_from_mask(mask),), difficulty=difficulty)


def compare(name: str, segmenter: Segmenter, source: Scenes, options: argparse.Namespace) -> None:
    """Prints samples per second of the plain loop and of the evaluator, and whether they did the same work."""
    seconds: dict[str, list[float]] = {"plain loop": [], "evaluator": []}
    found: dict[str, Answered] = {}
    stages: dict[str, float] = {}
    for _ in range(options.rounds):
        found["plain loop"], spent = plain_loop(segmenter, source)
        seconds["plain loop"].append(spent)
        forget(segmenter)
        found["evaluator"], spent, stages = evaluator(segmenter, source, options.batch_size)
        seconds["evaluator"].append(spent)
        forget(segmenter)
    print(f"\n{name}: {source.images} images × {source.questions} questions, {torch.get_num_threads()} threads")
    rates = {who: len(source) / float(np.median(spent)) for who, spent in seconds.items()}
    for who, rate in rates.items():
        print(f"  {who:11s} {rate:8.2f} samples/s   (rounds: {', '.join(f'{s:.1f} s' for s in seconds[who])})")
    print(f"  ratio       {rates['evaluator'] / rates['plain loop']:8.2f}")
    pairs = list(zip(found["plain loop"], found["evaluator"], strict=True))
    texts = sum(a[0] == b[0] for a, b in pairs)
    masks = sum(bool((a[1] == b[1]).all()) for a, b in pairs)
    print(f"  equal work: {texts} of {len(pairs)} texts and {masks} masks are the same")
    print("  evaluator, ms a sample: " + ", ".join(f"{stage} {value:.1f}" for stage, value in stages.items()))


def forget(segmenter: Segmenter) -> None:
    """Empties the segmenter's cache, so that every round embeds anew."""
    if isinstance(segmenter, SAM2):
        segmenter.cache.clear()


@torch.no_grad()
def plain_loop(segmenter: Segmenter, source: SampleSource) -> tuple[Answered, float]:
    """One sample at a time: resize, generate, parse, embed, predict, compare."""
    backbone = Qwen25VL(str(POLICY), dtype="float32", local_files_only=True)
    backbone.setup()
    model: Any = backbone.load_model().eval()
    predict = predictor(segmenter)
    collate = Collate(ShortPrompt(), (IMAGE_SIZE, IMAGE_SIZE), "pixels")
    answered: Answered = []
    ious = []
    started = time.perf_counter()
    for index in range(len(source)):
        sample = source[index]
        prompt = collate.prompt(sample)
        text = generate(backbone, model, prompt)
        mask = predict(prompt, text)
        assert sample.mask is not None
        ious.append((mask & sample.mask).sum() / max(1, (mask | sample.mask).sum()))
        answered.append((text, mask))
    return answered, time.perf_counter() - started


def generate(backbone: Qwen25VL, model: Any, prompt: Prompt) -> str:
    """A greedy answer by transformers' own `generate`."""
    chat = backbone.processor.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
    inputs = backbone.processor(text=[chat], images=[prompt.image], return_tensors="pt")
    output = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=list(backbone.stop_token_ids),
        pad_token_id=backbone.processor.tokenizer.pad_token_id,
        suppress_tokens=list(backbone.forbidden_token_ids),
    )
    new = output[:, inputs["input_ids"].shape[1] :]
    return str(backbone.processor.batch_decode(new, skip_special_tokens=True)[0])


def predictor(segmenter: Segmenter) -> Callable[[Prompt, str], np.ndarray]:
    """What makes a mask of one answer: for SAM 2 the library's own predictor, which embeds the image every time."""

    def request_of(prompt: Prompt, text: str) -> SegmentationRequest:
        answered = answered_objects(prompt, text, parse_completion(text), "segzero")
        return SegmentationRequest(prompt.sample.image, answered.objects, answered.points_per_object)

    def with_sam2(prompt: Prompt, text: str) -> np.ndarray:
        request = request_of(prompt, text)
        if not request.objects:
            return np.zeros(prompt.sample.image.size[::-1], dtype=bool)
        library.set_image(prompt.sample.image)
        target = request.objects[0]
        masks, scores, _ = library.predict(
            point_coords=np.array(target.points_xy), point_labels=np.ones(2), box=np.array(target.box_xyxy)
        )
        return masks[scores.argmax()].astype(bool)

    def with_others(prompt: Prompt, text: str) -> np.ndarray:
        return segmenter.segment([request_of(prompt, text)])[0]

    if not isinstance(segmenter, SAM2):
        return with_others
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    library = SAM2ImagePredictor(segmenter._predictor.model)
    return with_sam2


class Stopwatch(Callback):
    """Collects predictions, and the time from the first batch to the last metric."""

    def __init__(self) -> None:
        self.predictions: list[Prediction] = []
        self.seconds = 0.0

    def on_test_epoch_start(self, *rest: Any) -> None:
        self.started = time.perf_counter()

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *rest: Any) -> None:
        self.predictions += outputs

    def on_test_epoch_end(self, *rest: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def evaluator(segmenter: Segmenter, source: SampleSource, batch_size: int) -> tuple[Answered, float, dict[str, float]]:
    """What `python -m pixelthink test` does, timed without the loading of weights; means of the stages, too."""
    greedy = EvaluationConfig(sampling=SamplingConfig(group_size=1, temperature=0.0, max_new_tokens=TOKENS))
    policy = Qwen25VL(str(POLICY), dtype="float32", local_files_only=True)
    module = GRPOModule(policy, segmenter=segmenter, evaluation=greedy)
    data = PromptData(
        test=source, prompt=ShortPrompt(), image_size=(IMAGE_SIZE, IMAGE_SIZE), eval_batch_size=batch_size
    )
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu",
            logger=False,
            callbacks=[watch],
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.test(module, data, verbose=False)
    names = ("preparation_ms", "prefill_ms", "decoding_ms", "segmentation_ms")
    stages = {n.removesuffix("_ms"): float(np.mean([getattr(p.timings, n) for p in watch.predictions])) for n in names}
    return [(p.completion.text, p.mask) for p in watch.predictions], watch.seconds, stages


def reward_cost(name: str, segmenter: Segmenter, prompts: int, group_size: int = 8) -> None:
    """Prints what `MaskIoU` adds to the reward of a training step of some prompts."""
    rollout = sampled(Scenes(prompts, 1), group_size)
    seconds = {}
    for label, extra in (("without", None), ("with", [MaskIoU()])):
        reward = PixelThinkReward(length=NoLengthScore(), extra=extra)
        reward.setup("cpu", segmenter)
        forget(segmenter)
        seconds[label] = timed(lambda reward=reward: reward(rollout))
    print(
        f"  MaskIoU on a step of {prompts} × {group_size} completions: {seconds['with']:.2f} s more than the "
        f"{1000 * seconds['without']:.1f} ms of the reward without it; the step's rollout took {rollout.seconds:.2f} s"
    )


def sampled(source: SampleSource, group_size: int) -> RolloutBatch:
    """A training step's rollout."""
    backbone = Qwen25VL(str(POLICY), dtype="float32", local_files_only=True)
    backbone.setup()
    engine = HFEngine()
    engine.setup(backbone, backbone.load_model())
    collate = Collate(ShortPrompt(), (IMAGE_SIZE, IMAGE_SIZE), "pixels")
    batch: PromptBatch = collate([source[i] for i in range(len(source))])
    return engine.generate(batch, SamplingConfig(group_size=group_size, max_new_tokens=TOKENS), seed=0)


def embedding_cost(segmenter: SAM2, answers: int = 8) -> None:
    """Prints what one and what several answers to one image cost, and how many embeddings they take."""
    image = Scenes(1, 1)[0]
    requests = [SegmentationRequest(image.image, image.targets)] * answers
    before = segmenter.embedded_images
    forget(segmenter)
    first = timed(lambda: segmenter.segment(requests[:1]))
    forget(segmenter)
    together = timed(lambda: segmenter.segment(requests))
    again = timed(lambda: segmenter.segment(requests))
    print(
        f"  one answer to an image {first:.2f} s, {answers} answers {together:.2f} s, the same {answers} when it is "
        f"cached {again:.2f} s; {segmenter.embedded_images - before} embeddings in all (2 expected)"
    )


def timed(work: Callable[[], Any]) -> float:
    """Wall-clock seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
