"""Estimates difficulties without any rater, from how often a policy itself succeeds.

    python tools/estimate_difficulty.py --run configs/tiny.yaml --split train --rollouts 8 --output difficulty.json

The policy, the prompts and the samples are those of a run's configuration. Each question is answered `rollouts` times;
its success is the mean share of objects that an answer finds (box IoU over a threshold), and success becomes a
difficulty from 1 to 10 by quantiles, see `pixelthink.data.difficulty.success_to_difficulty`. Successes are kept in
OUTPUT.rollouts.jsonl as they come in, and the same command goes on where it stopped. The output is in the released
format, and a data set takes it as `difficulty_file`.

Exit code 0; 2 with one line on standard error where something is wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from jsonargparse import ArgumentError, ArgumentParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from pixelthink.answering.answerer import Answerer
from pixelthink.cli.layers import files_of
from pixelthink.cli.messages import instantiate
from pixelthink.cli.registry import load_components
from pixelthink.data.collate import Collate
from pixelthink.data.datamodule import PromptData
from pixelthink.data.difficulty import released_rows, success_to_difficulty
from pixelthink.errors import UserError
from pixelthink.evaluation.interface import SegmentationModule
from pixelthink.files.atomic import write_atomically
from pixelthink.files.jsonl import append_log, read_log
from pixelthink.geometry import Target, box_iou
from pixelthink.parsing import Answer, parse_completion
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.types import RolloutBatch

SPLITS = ("train", "val", "test", "predict")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        load_components()
        options = build_parser().parse_args(arguments)
        if options.split not in SPLITS:
            raise UserError(f"split must be one of {', '.join(SPLITS)}, got {options.split!r}")
        module, data = load_run(options.run, options.policy)
        success = dict(measure(module, data, options))
        rows = released_rows(success_to_difficulty(success))
    except (ArgumentError, OmegaConfBaseException, UserError) as error:
        print(f"error: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 2
    write_atomically(Path(options.output), json.dumps(rows, ensure_ascii=False, indent=1))
    print(f"{len(rows)} samples, mean success {fmean(success.values()):.3f}, {len(set(success.values()))} distinct")
    return 0


def build_parser() -> ArgumentParser:
    """The options."""
    about = (__doc__ or "").split("\n")[0]
    parser = ArgumentParser(prog="estimate_difficulty.py", description=about, exit_on_error=False)
    parser.add_argument("--run", type=str, required=True, help="YAML configuration of a run; its model and data count.")
    parser.add_argument("--policy", type=str, help="Other weights: replaces the policy's path.")
    parser.add_argument("--split", type=str, default="train", help="Which of the run's sources: train, val, test, ….")
    parser.add_argument("--output", type=str, required=True, help="JSON file of the difficulties.")
    parser.add_argument("--rollouts", type=int, default=8, help="Answers to each question.")
    parser.add_argument("--temperature", type=float, default=1.0, help="Softmax temperature of the answers.")
    parser.add_argument("--max_new_tokens", type=int, help="Limit of an answer's length; the run's by default.")
    parser.add_argument("--threshold", type=float, default=0.5, help="IoU over which a box has found its object.")
    parser.add_argument("--batch_size", type=int, default=8, help="Questions answered together.")
    parser.add_argument("--device", type=str, default="cpu", help="Where the policy runs, e.g. cuda.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the answers.")
    return parser


def load_run(path: str, policy: str | None) -> tuple[SegmentationModule, PromptData]:
    """Module and data of a run's configuration.

    Raises:
        UserError: the file has no model or data, or names no component.
    """
    layers = [OmegaConf.to_container(OmegaConf.load(file), resolve=True) for file in files_of(path)]
    if not {"model", "data"} <= {key for layer in layers for key in layer}:
        raise UserError(f"{path}: a run's configuration has model and data")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SegmentationModule, "model")
    parser.add_class_arguments(PromptData, "data")
    arguments = [f"--model.policy.path={policy}"] if policy is not None else []
    defaults = None
    for layer in layers:
        parts = {key: layer[key] for key in ("model", "data") if key in layer}
        defaults = parser.parse_object(parts, cfg_base=defaults)
    made = instantiate(parser, parser.parse_args([*arguments], namespace=defaults) if arguments else defaults)
    return made.model, made.data


def measure(module: SegmentationModule, data: PromptData, options: object) -> Iterator[tuple[str, float]]:
    """Id and mean success of every sample, taken from the log where they stand there."""
    get = vars(options).__getitem__
    log = f"{get('output')}.rollouts.jsonl"
    settings = {key: get(key) for key in ("rollouts", "temperature", "threshold", "seed", "policy")}
    known = {row["id"]: row["success"] for row in read_log(log) if row["settings"] == settings}
    source = data.sources[get("split")]
    if source is None:
        raise UserError(f"data.{get('split')} is not set in {get('run')}")
    source.setup()
    collate = Collate(data.prompt, data.image_size, data.coordinates)
    ids, size = list(source.ids()), get("batch_size")
    sampling = _sampling(module, get("rollouts"), get("temperature"), get("max_new_tokens"))
    for start in tqdm(range(0, len(ids), size), unit="batch", desc="answering", file=sys.stderr):
        names = ids[start : start + size]
        if not all(name in known for name in names):
            start_once(module.answerer, get("device"))
            samples = [source[index] for index in range(start, start + len(names))]
            if unknown := [s.id for s in samples if s.mask is None and not s.targets]:
                raise UserError(f"sample {unknown[0]!r}: where its object is, is not known")
            batch = collate(samples)
            rollout = module.answerer.engine.generate(batch, sampling, get("seed") + start, evaluating=True)
            found = successes(rollout, data.prompt.answer_style, get("threshold"))
            known.update(zip(names, found, strict=True))
            append_log(log, [{"id": name, "success": known[name], "settings": settings} for name in names])
        yield from ((name, known[name]) for name in names)


def successes(rollout: RolloutBatch, style: str, threshold: float) -> list[float]:
    """Mean success of each prompt's answers."""
    scores = [
        success(parse_completion(completion.text, style), rollout.prompt_of(index).targets, threshold)
        for index, completion in enumerate(rollout.completions)
    ]
    size = rollout.group_size
    return [fmean(scores[start : start + size]) for start in range(0, len(scores), size)]


def success(answer: Answer, targets: Sequence[Target], threshold: float) -> float:
    """Objects found, divided by the number of objects there are or are named, whichever is more.

    An answer that cannot be read finds nothing; where there is no object, only an answer that names none succeeds.
    """
    if answer.failure is not None:
        return 0.0
    boxes = [item.box_xyxy for item in answer.objects if item.box_xyxy] if answer.objects else []
    if not boxes and answer.box_xyxy is not None:
        boxes = [answer.box_xyxy]
    if not targets or not boxes:
        return float(not targets and not boxes)
    free = list(boxes)
    for target in targets:
        best = max(free, key=lambda box: box_iou(box, target.box_xyxy), default=None)
        if best is not None and box_iou(best, target.box_xyxy) > threshold:
            free.remove(best)
    return (len(boxes) - len(free)) / max(len(boxes), len(targets))


def _sampling(module: SegmentationModule, rollouts: int, temperature: float, limit: int | None) -> SamplingConfig:
    """The run's own way of sampling, as often as asked for."""
    base: SamplingConfig = getattr(module, "sampling", module.evaluator.config.sampling)
    return replace(base, group_size=rollouts, temperature=temperature, max_new_tokens=limit or base.max_new_tokens)


def start_once(answerer: Answerer, device: str) -> None:
    """Loads the weights when they are first needed; of a training module the policy only, not its reference."""
    if not answerer.is_started:
        answerer.start(answerer.load_policy().to(device), device)


if __name__ == "__main__":
    sys.exit(main())
