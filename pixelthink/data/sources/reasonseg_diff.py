"""ReasonSeg-Diff: difficulty and reference reasoning for the questions of another source."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pixelthink.data.base import ImageSource, SampleSource
from pixelthink.data.difficulty import for_all
from pixelthink.data.images import ImageOpener
from pixelthink.data.reading import read_json
from pixelthink.data.sources.table import open_table, read_row
from pixelthink.data.validation import check_difficulty
from pixelthink.errors import FileError
from pixelthink.files.jsonl import read_rows
from pixelthink.types import Sample


@dataclass(frozen=True)
class AnnotationFields:
    """Names of the fields; the paper does not publish them.

    Attributes:
        id: Field that holds the sample's or its image's id.
        difficulty: Field that holds the difficulty, 1 to 10, or, with dots, where in nested objects it is. None takes
            the mean of `difficulty_parts`, or, where there are none either, leaves the samples' own difficulties.
        difficulty_parts: Name of a part (scene, seg, language) → its field.
        reasoning: Name of a style → its field.
    """

    id: str = "image_id"
    difficulty: str | None = "difficulty_score_model"
    difficulty_parts: Mapping[str, str] = field(default_factory=dict)
    reasoning: Mapping[str, str] = field(default_factory=lambda: {"short": "short_reasoning", "long": "long_reasoning"})


@dataclass(frozen=True)
class _Annotation:
    difficulty: float | None
    parts: dict[str, float]
    reasoning: dict[str, str]


class ReasonSegDiff(ImageSource):
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
        self._annotations: dict[str, _Annotation] | None = None

    def setup(self) -> None:
        """Opens the samples and reads the annotations.

        Raises:
            UserError: a damaged annotation, or samples without one; counts and names them.
        """
        if self._annotations is not None:
            return
        self.samples.setup()
        annotations: dict[str, _Annotation] = {}
        for number, row in enumerate(_read_annotations(self.annotations)):
            name, annotation = _read_annotation(row, self.fields, f"{self.annotations}: item {number}")
            if name in annotations:
                raise FileError(f"{self.annotations}: item {number}: {self.fields.id} {name!r} occurs twice")
            annotations[name] = annotation
        self._annotations = for_all(self.samples.ids(), annotations, f"{self.annotations}: no annotation")

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int, open_image: ImageOpener) -> Sample:
        if self._annotations is None:
            raise RuntimeError("call setup() before reading samples")
        sample = self.samples.read(index, open_image)
        annotation = self._annotations[sample.id]
        return replace(
            sample,
            difficulty=sample.difficulty if annotation.difficulty is None else annotation.difficulty,
            reasoning={**sample.reasoning, **annotation.reasoning},
            meta={**sample.meta, "difficulty_parts": annotation.parts} if annotation.parts else sample.meta,
        )

    def ids(self) -> Sequence[str]:
        return self.samples.ids()


def _read_annotations(path: str) -> list[dict[str, Any]]:
    if path.endswith(".parquet"):
        table = open_table(path, "train")
        rows: Any = [read_row(table, index) for index in range(len(table))]
    elif path.endswith((".jsonl", ".jsonl.gz")):
        rows = [row for _, row in read_rows(path)]
    else:
        rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise FileError(f"{path}: expected a list of objects")
    return rows


def _read_annotation(row: Mapping[str, Any], fields: AnnotationFields, owner: str) -> tuple[str, _Annotation]:
    """The id of an annotation, and the annotation."""

    def pick(path: str) -> Any:
        """The field at a dotted path."""
        value: Any = row
        for key in path.split("."):
            if not isinstance(value, Mapping) or key not in value:
                raise FileError(f"{owner}: no field {path!r}; there are {json.dumps(sorted(row))[:200]}")
            value = value[key]
        return value

    name = str(pick(fields.id))
    parts = {part: check_difficulty(pick(at), owner) for part, at in fields.difficulty_parts.items()}
    difficulty = sum(parts.values()) / len(parts) if parts else None
    if fields.difficulty:
        difficulty = check_difficulty(pick(fields.difficulty), owner)
    reasoning = {style: pick(at) for style, at in fields.reasoning.items()}
    for style, text in reasoning.items():
        if not isinstance(text, str) or not text.strip():
            raise FileError(f"{owner}: {style} reasoning is empty or no text")
    return name, _Annotation(difficulty, parts, reasoning)
