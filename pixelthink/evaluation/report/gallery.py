"""What the page's gallery is told of each sample, ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixelthink.evaluation.finished_run import FinishedRun, row_mask
from pixelthink.evaluation.report.outlines import mask_path
from pixelthink.evaluation.report.pictures import data_uri
from pixelthink.evaluation.results import Row

MAX_TEXT = 6000
"""Characters of a response that are shown."""


@dataclass(frozen=True)
class Gallery:
    """The samples of a page.

    Attributes:
        samples: One object a sample, see `_sample`.
        pictures: `data:` URIs; a sample names its picture by the position.
        without_picture: Samples that are listed without one since there would have been too many; others may have none
            because their image could not be read, and say so.
    """

    samples: list[dict[str, Any]]
    pictures: list[str]
    without_picture: int


def collect(
    runs: Sequence[FinishedRun], scores: Sequence[Mapping[str, float | None]], *, max_pictures: int, side: int
) -> Gallery:
    """Collects samples and pictures.

    Where there are more samples than pictures allowed, those with one are spread evenly over the IoUs.

    Args:
        runs: One run, or two with the same samples.
        scores: For each run, id → IoU; these samples are shown, in the first run's order.
        max_pictures: Samples that get a picture.
        side: Longer side of the pictures in pixels.
    """
    by_id = [{row["id"]: row for row in run.rows} for run in runs]
    shown = [row["id"] for row in runs[0].rows if row["id"] in scores[0]]
    pictured = _spread(shown, scores[-1], max_pictures)
    uris: dict[str, str | None] = {}  # by file name, a hash of the content: a picture is read once for all questions
    samples = []
    for name in shown:
        rows = [of_run[name] for of_run in by_id]
        files = [run.folder / row["thumbnail"] for run, row in zip(runs, rows, strict=True) if row.get("thumbnail")]
        picture = None
        for file in files if name in pictured else ():
            if uris.get(file.name) is None:
                uris[file.name] = data_uri(file, side)
            if uris[file.name] is not None:
                picture = file.name
                break
        samples.append(_sample(rows, [of_run[name] for of_run in scores], picture))
    pictures = {name: uri for name, uri in uris.items() if uri is not None}
    places = {name: place for place, name in enumerate(pictures)}
    for sample in samples:
        sample["picture"] = places.get(sample["picture"])
    return Gallery(samples, list(pictures.values()), len(shown) - len(pictured))


def _spread(names: Sequence[str], scores: Mapping[str, float | None], number: int) -> set[str]:
    """At most `number` of the names, spread evenly over their scores."""
    ranked = sorted(names, key=lambda name: scores[name] or 0.0)
    if len(ranked) <= number:
        return set(ranked)
    return {ranked[place] for place in np.linspace(0, len(ranked) - 1, number).round().astype(int)} if number else set()


def _sample(rows: Sequence[Row], ious: Sequence[float | None], picture: str | None) -> dict[str, Any]:
    first = next((row for row in rows if row.get("size")), rows[0])
    drawn = picture is not None
    return {
        "id": str(first["id"]),
        "question": first["question"],
        "difficulty": first.get("difficulty"),
        "level": first["level"],
        "size": first.get("size"),
        "picture": picture,
        "target": mask_path(row_mask(first, "target")) if drawn else "",
        "ignore": mask_path(row_mask(first, "ignore")) if drawn else "",
        "trueObjects": first.get("true_objects") or [],
        "gain": None if len(ious) < 2 or None in ious else ious[1] - ious[0],  # type: ignore[operator]
        "answers": [_answer(row, iou, drawn=drawn) for row, iou in zip(rows, ious, strict=True)],
    }


def _answer(row: Row, iou: float | None, *, drawn: bool) -> dict[str, Any]:
    return {
        "iou": iou,
        "tokens": row["reasoning_tokens"],
        "responseTokens": row.get("response_tokens"),
        "failure": row["failure"],
        "detail": row.get("failure_detail"),
        "flaws": row.get("flaws") or [],
        "cut": row.get("finish_reason") == "length",
        "reasoning": _clipped(row.get("reasoning") or ""),
        "response": _clipped(row["response"]),
        "uncertainty": row.get("uncertainty"),
        "rscore": row.get("rscore"),
        "timings": row.get("timings") or {},
        "mask": mask_path(row_mask(row, "prediction")) if drawn else "",
        "objects": row.get("objects") or [],
    }


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text)} characters)"
