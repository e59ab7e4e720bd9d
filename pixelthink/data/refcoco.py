"""RefCOCO, RefCOCO+, RefCOCOg (`refs(….p` and `instances.json`) and gRefCOCO (`grefs(….json`)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info

from pixelthink.data.base import SampleSource
from pixelthink.data.coco import Instances, instances_sample, read_instances
from pixelthink.data.files import duplicates, read_json, read_pickle
from pixelthink.types import Sample

NO_TARGET = -1


@dataclass(frozen=True)
class _Row:
    """One sample to be; where `problem` is set, it cannot be made."""

    id: str
    image_id: int
    question: str
    objects: tuple[int, ...]
    object_id: str
    problem: str | None = None


class ReferringExpressions(SampleSource):
    """What the RefCOCO family shares: references to annotations of an instances file, each with several sentences.

    All sentences about the same annotations of an image, be it in one reference or several, ask for one object, with
    `object_id` `IMAGE#ANNOTATION` or `IMAGE#FIRST+SECOND`. References without a target may ask for
    different things that are not there, so each is an object of its own, `IMAGE#none#REF`.

    Args:
        root: Folder of the references file and `instances.json`.
        images: Folder of the images, found by the instances file's `file_name`.
        split: "train", "val", "testA", "testB", "test", ….
        split_by: Who made the splits ("unc", "umd", "google"); may be left out where the folder has one file only.
        count: Which samples there are. "expression": one for each sentence, with ids `REF#0`, `REF#1`, …, as papers
            report it. "object": one for each reference, asked by its first sentence, with id `REF`. (To ask all
            sentences and let each object count once, leave this as it is and set `evaluation.count`.)
    """

    pattern: str
    """Name of the references file, `{}` standing for who split it."""

    def __init__(
        self,
        root: str,
        images: str,
        split: str = "val",
        split_by: str | None = None,
        count: Literal["expression", "object"] = "expression",
    ) -> None:
        if count not in ("expression", "object"):
            raise ValueError(f"count must be 'expression' or 'object', got {count!r}")
        self.root = root
        self.images = images
        self.split = split
        self.split_by = split_by
        self.count = count
        self._data: Instances | None = None
        self._rows: list[_Row] = []
        self._duplicates: dict[int, int] = {}
        self._file = ""

    @abstractmethod
    def read_references(self, path: Path) -> Any:
        """What the references file holds."""

    def setup(self) -> None:
        """Reads the references of the split and the instances.

        Raises:
            ValueError: a file is missing, damaged or would run code, or the split is empty; one line that names it.
        """
        if self._data is not None:
            return
        file = _find_file(Path(self.root), self.pattern, self.split_by)
        self._file = str(file)
        references = self.read_references(file)
        if not isinstance(references, list):
            raise ValueError(f"{file}: expected a list of references")
        rows: list[_Row] = []
        splits: set[str] = set()
        mine = 0
        for position, reference in enumerate(references):
            if not isinstance(reference, dict):
                raise ValueError(f"{file}: reference {position} is no object")
            splits.add(str(reference.get("split")))
            if reference.get("split") == self.split:
                mine += 1
                rows += _read_reference(reference, position, self.count)
        if not rows:
            raise ValueError(f"{file}: no reference of split {self.split!r}; there are {', '.join(sorted(splits))}")
        self._rows = rows
        self._duplicates = duplicates(row.id for row in rows)
        self._data = read_instances(Path(self.root) / "instances.json")
        one = "sentence" if self.count == "expression" else "reference"
        rank_zero_info(f"{file}: split {self.split}: {len(rows)} samples, one per {one}, of {mine} references")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        if self._data is None:
            raise RuntimeError("call setup() before reading samples")
        row = self._rows[index]
        problem = row.problem
        if index in self._duplicates:
            problem = "the reference occurs twice"
        try:
            if problem is not None:
                raise ValueError(problem)
            sample = instances_sample(self._data, self.images, row.id, row.image_id, row.question, row.objects)
            return replace(sample, object_id=row.object_id)
        except ValueError as error:
            raise ValueError(f"{self._file}: {row.id}: {error}") from None

    def ids(self) -> list[str]:
        return [row.id for row in self._rows]


class RefCOCO(ReferringExpressions):
    """RefCOCO, RefCOCO+ and RefCOCOg as published: `refs(unc).p` (RefCOCOg: `umd`) beside `instances.json`.

    The references are a pickle; it is read without running anything that it may hold.

    Args:
        root: Folder of the references file and `instances.json`.
        images: Folder of the images, found by the instances file's `file_name` (COCO's `train2014`).
        split: "train", "val", "testA", "testB", "test".
        split_by: Who made the splits ("unc", "umd", "google"); may be left out where the folder has one file only.
        count: Which samples there are. "expression": one for each sentence, with ids `REF#0`, `REF#1`, …, as papers
            report it. "object": one for each reference, asked by its first sentence, with id `REF`. (To ask all
            sentences and let each object count once, leave this as it is and set `evaluation.count`.)
    """

    pattern = "refs({}).p"

    def read_references(self, path: Path) -> Any:
        return read_pickle(path)


class GRefCOCO(ReferringExpressions):
    """gRefCOCO as published: `grefs(unc).json` beside `instances.json`; a reference has several targets or none.

    Args:
        root: Folder of the references file and `instances.json`.
        images: Folder of the images, found by the instances file's `file_name` (COCO's `train2014`).
        split: "train", "val", "testA", "testB".
        split_by: Who made the splits ("unc"); may be left out where the folder has one file only.
        count: Which samples there are. "expression": one for each sentence, with ids `REF#0`, `REF#1`, …. "object": one
            for each reference, asked by its first sentence, with id `REF`. (To ask all sentences and let each object
            count once, leave this as it is and set `evaluation.count`.)
    """

    pattern = "grefs({}).json"

    def read_references(self, path: Path) -> Any:
        return read_json(path)


def _find_file(root: Path, pattern: str, split_by: str | None) -> Path:
    """The references file."""
    if split_by is not None:
        return root / pattern.format(split_by)
    found = sorted(root.glob(pattern.format("*")))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ValueError(f"{root}: expected one {pattern.format('…')}, found {names}; set split_by")
    return found[0]


def _read_reference(reference: Mapping[str, Any], position: int, count: str) -> list[_Row]:
    name = str(reference.get("ref_id", f"item {position}"))
    try:
        objects = _objects(reference.get("ann_id"))
        image_id, sentences = reference.get("image_id"), reference.get("sentences")
        if "ref_id" not in reference or not isinstance(image_id, int):
            raise ValueError("no ref_id or image_id")
        if not isinstance(sentences, list | tuple) or not sentences:
            raise ValueError("no sentences")
    except ValueError as error:
        return [_Row(name, 0, "", (), "", problem=str(error))]
    shared = f"{image_id}#" + ("+".join(str(one) for one in sorted(objects)) or f"none#{name}")
    if count == "object":
        return [_sentence(name, image_id, sentences[0], objects, shared)]
    return [_sentence(f"{name}#{number}", image_id, item, objects, shared) for number, item in enumerate(sentences)]


def _sentence(name: str, image_id: int, sentence: object, objects: tuple[int, ...], object_id: str) -> _Row:
    text = sentence.get("sent") if isinstance(sentence, Mapping) else None
    if not isinstance(text, str) or not text.strip():
        return _Row(name, image_id, "", objects, object_id, problem="the sentence is empty")
    return _Row(name, image_id, text, objects, object_id)


def _objects(value: object) -> tuple[int, ...]:
    """Annotation ids of a reference: one, several, or none, written −1."""
    ids: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    if not ids or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise ValueError("ann_id is no whole number and no list of them")
    if NO_TARGET in ids and len(ids) > 1:
        raise ValueError(f"ann_id holds −1, that is no target, beside others: {list(ids)}")
    if len(set(ids)) < len(ids):
        raise ValueError(f"ann_id names an annotation twice: {list(ids)}")
    return () if NO_TARGET in ids else tuple(ids)
