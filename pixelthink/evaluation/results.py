"""The files of an evaluation: one JSON row a sample, from which its prediction can be made again, and what ran.

`docs/evaluation.md` describes every key. All coordinates are original pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pixelthink.errors import UserError
from pixelthink.files.atomic import write_atomically
from pixelthink.geometry import Target, decode_rle, encode_rle
from pixelthink.metrics.measured import Measured
from pixelthink.parsing import parse_completion
from pixelthink.types import Completion, Prediction, Prompt, Sample, Timings, difficulty_level

SAMPLES, METRICS, RUN = "samples.jsonl", "metrics.json", "run.json"
"""Names of the files in a folder of results."""

Row = dict[str, Any]
"""One line of `samples.jsonl`."""


def sample_row(prediction: Prediction, measured: Measured | None, thumbnail: str | None = None) -> Row:
    """A prediction as a JSON object.

    Args:
        prediction: What to write down.
        measured: Its numbers; None where the truth is unknown.
        thumbnail: Path of a small copy of the image, relative to the folder of the results.
    """
    sample, completion = prediction.prompt.sample, prediction.completion
    sized = sample.missing is None or sample.mask is not None
    file = sample.meta.get("file")
    return {
        "id": sample.id,
        "index": sample.index,
        "object": sample.object_id,
        "question": sample.question,
        "difficulty": sample.difficulty,
        "level": None if sample.difficulty is None else difficulty_level(sample.difficulty),
        "image": str(file) if file is not None else None,
        "size": list(sample.image.size) if sized else None,
        "thumbnail": thumbnail,
        "response": completion.text,
        "reasoning": prediction.answer.reasoning,
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "objects": [target_row(target) for target in prediction.objects],
        "true_objects": [target_row(target) for target in sample.targets],
        "failure": prediction.failure,
        "failure_detail": prediction.failure_detail,
        "flaws": list(prediction.flaws),
        "prediction": encode_rle(prediction.mask) if sized else None,
        "target": None if sample.mask is None else encode_rle(sample.mask),
        "ignore": None if sample.ignore is None else encode_rle(sample.ignore),
        "intersection": None if measured is None else measured.intersection,
        "union": None if measured is None else measured.union,
        "iou": None if measured is None else measured.iou,
        "reasoning_tokens": completion.reasoning_tokens,
        "answer_tokens": completion.answer_tokens,
        "response_tokens": len(completion.token_ids),
        "token_target": None if (asked := prediction.prompt.token_target) is None else asdict(asked),
        "words": len(completion.text.split()),
        "uncertainty": completion.uncertainty,
        "timings": asdict(prediction.timings),
        "rscore": None if measured is None else measured.rscore,
        "judge_failure": None if measured is None else measured.judge_failure,
        "judge_detail": None if measured is None else measured.judge_detail,
    }


def target_row(target: Target) -> dict[str, Any]:
    """A box and its two points as a JSON object."""
    return {"box": list(target.box_xyxy), "points": [list(point) for point in target.points_xy]}


def recorded_prediction(prompt: Prompt, row: Row) -> Prediction:
    """The prediction of which a row was made, without the log-probabilities of its tokens.

    Args:
        prompt: The question, read again. Where its image is missing by now, the row knows all but the image.
        row: Its row, of a sample that was asked.
    """
    if prompt.sample.missing is not None:
        prompt = replace(prompt, sample=_remembered(prompt.sample, row))
    answer = parse_completion(row["response"], prompt.answer_style)
    completion = Completion(
        token_ids=tuple(row["token_ids"]),
        logprobs=(),
        text=row["response"],
        finish_reason=row["finish_reason"],
        reasoning_tokens=row["reasoning_tokens"],
        uncertainty=row["uncertainty"],
        answer_tokens=row["answer_tokens"],
    )
    return Prediction(
        prompt=prompt,
        completion=completion,
        answer=answer,
        mask=decode_rle(row["prediction"]),
        failure=row["failure"],
        objects=targets_of(row, "objects"),
        timings=Timings(**row["timings"]),
        flaws=tuple(row["flaws"]),
        failure_detail=row["failure_detail"],
    )


def _remembered(sample: Sample, row: Row) -> Sample:
    """A sample whose image has gone missing since its row was written, with all that the row knows."""
    return replace(
        sample,
        image=sample.image.resize(tuple(row["size"])),
        question=row["question"],
        mask=None if row["target"] is None else decode_rle(row["target"]),
        ignore=None if row["ignore"] is None else decode_rle(row["ignore"]),
        targets=targets_of(row),
        difficulty=row["difficulty"],
        meta={} if row["image"] is None else {"file": row["image"]},
        missing=None,
        object_id=row.get("object", sample.object_id),
    )


def targets_of(row: Row, key: str = "true_objects") -> tuple[Target, ...]:
    """The objects of a row: the true ones or, under "objects", the answered ones."""
    return tuple(Target(tuple(item["box"]), (tuple(item["points"][0]), tuple(item["points"][1]))) for item in row[key])


def read_document(folder: str | Path, name: str) -> dict[str, Any]:
    """`metrics.json` or `run.json` of a finished evaluation.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no JSON object; begins with the path.
    """
    path = Path(folder) / name
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {' '.join(str(error).split())[:100]}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_document(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes a JSON file that appears whole or not at all."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
