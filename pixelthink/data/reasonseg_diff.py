"""ReasonSeg-Diff: difficulty and reference reasoning for the questions of another source."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pixelthink.data.base import SampleSource
from pixelthink.data.checks import check_difficulty
from pixelthink.data.difficulty import lookup, some
from pixelthink.data.files import read_json
from pixelthink.data.tables import open_table
from pixelthink.files.jsonl import read_rows
from pixelthink.types import Sample


@dataclass(frozen=True)
class AnnotationFields:
    """Names of the fields; the paper does not publish them.

    Attributes:
        id: Field that holds the sample's or its image's id.
        difficulty: Field that holds the difficulty, 1 to 10, or, with dots, where in nested objects it is.
        difficulty_parts: Name of a part (scene, seg, language) → its field. Where `difficulty` is empty, their mean is
            the difficulty.
        reasoning: Name of a style → its field.
    """

    id: str = "image_id"
    difficulty: str = "difficulty_score_model"
    difficulty_parts: Mapping[str, str] = field(default_factory=dict)
    reasoning: Mapping[str, str] = field(default_factory=lambda: {"short": "short_reasoning", "long": "long_reasoning"})


class ReasonSegDiff(SampleSource):
    """Adds difficulty and short and long reference reasoning to a source's samples, by id.

    Args:
        samples: Images, questions and masks, e.g. `ReasonSeg`.
        annotations: JSON list, JSON Lines or Parquet file with a row a sample.
        fields: How its fields are named.
    """

    def __init__(self, samples: SampleSource, annotations: str, fields: AnnotationFields | None = None) -> None:
        self.samples = samples
        self.annotations = annotations
        self.fields = fields or AnnotationFields()
        self._notes: dict[str, _Notes] | None = None

    def setup(self) -> None:
        """Opens the samples and reads the annotations.

        Raises:
            ValueError: a damaged annotation, or samples without one; counts and names them.
        """
        if self._notes is not None:
            return
        self.samples.setup()
        notes: dict[str, _Notes] = {}
        for row, value in enumerate(_read_annotations(self.annotations)):
            name, note = _read_note(value, self.fields, f"{self.annotations}: item {row}")
            if name in notes:
                raise ValueError(f"{self.annotations}: item {row}: {self.fields.id} {name!r} occurs twice")
            notes[name] = note
        wanted = self.samples.ids()
        missing = [name for name in wanted if lookup(notes, name) is None]
        if missing:
            raise ValueError(
                f"{self.annotations}: no annotation for {len(missing)} of {len(wanted)} ids: {some(missing)}"
            )
        self._notes = notes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        if self._notes is None:
            raise RuntimeError("call setup() before reading samples")
        sample = self.samples[index]
        note = lookup(self._notes, sample.id)
        assert note is not None
        return replace(
            sample,
            difficulty=note.difficulty,
            reasoning={**sample.reasoning, **note.reasoning},
            meta={**sample.meta, "difficulty_parts": note.parts},
        )

    def ids(self) -> Sequence[str]:
        return self.samples.ids()


@dataclass(frozen=True)
class _Notes:
    difficulty: float
    parts: dict[str, float]
    reasoning: dict[str, str]


def _read_annotations(path: str) -> list[dict[str, Any]]:
    if path.endswith(".parquet"):
        table = open_table(path, "train")
        rows: Any = [table.row(index) for index in range(len(table))]
    elif path.endswith((".jsonl", ".jsonl.gz")):
        rows = [row for _, row in read_rows(path)]
    else:
        rows = read_json(Path(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a list of objects")
    return rows


def _read_note(row: Mapping[str, Any], fields: AnnotationFields, owner: str) -> tuple[str, _Notes]:
    name = str(_pick(row, fields.id, owner))
    parts = {part: check_difficulty(_pick(row, at, owner), owner) for part, at in fields.difficulty_parts.items()}
    if fields.difficulty:
        difficulty = check_difficulty(_pick(row, fields.difficulty, owner), owner)
    elif parts:
        difficulty = sum(parts.values()) / len(parts)
    else:
        raise ValueError("ReasonSegDiff: fields.difficulty or fields.difficulty_parts must be set")
    reasoning = {style: _pick(row, at, owner) for style, at in fields.reasoning.items()}
    for style, text in reasoning.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{owner}: {style} reasoning is empty or no text")
    return name, _Notes(difficulty, parts, reasoning)


def _pick(row: Mapping[str, Any], path: str, owner: str) -> Any:
    """The field at a dotted path."""
    value: Any = row
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"{owner}: no field {path!r}; there are {json.dumps(sorted(row))[:200]}")
        value = value[key]
    return value
