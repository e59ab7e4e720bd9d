"""RefCOCO, RefCOCO+, RefCOCOg (`refs(….p` and `instances.json`) and gRefCOCO (`grefs(….json`)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from lightning.pytorch.utilities import rank_zero_info

from pixelthink.data.base import BadRow, RowSource
from pixelthink.data.images import ImageOpener
from pixelthink.data.reading import duplicates, read_json, read_pickle
from pixelthink.data.sources.coco import Instances, InstancesRow, read_instances
from pixelthink.errors import FileError, UserError
from pixelthink.types import Sample

NO_TARGET = -1


class ReferringExpressions(RowSource[InstancesRow]):
    """What the RefCOCO family shares: references to annotations of an instances file, each with several sentences.

    All sentences about the same annotations of an image, in one reference or several, ask for one object, with
    `object_id` `IMAGE#ANNOTATION` or `IMAGE#FIRST+SECOND`. References without a target may ask for different things
    that are not there, so each is an object of its own, `IMAGE#none#REF`.

    Args:
        root: Folder of the references file and `instances.json`.
        images: Folder of the images (COCO's `train2014`), found by the instances file's `file_name`.
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
            raise UserError(f"count must be 'expression' or 'object', got {count!r}")
        self.root = root
        self.images = images
        self.split = split
        self.split_by = split_by
        self.count = count
        self._instances: Instances | None = None
        self._file = Path()

    @abstractmethod
    def read_references(self, path: Path) -> Any:
        """The content of the references file."""

    def read_rows(self) -> list[InstancesRow | BadRow]:
        self._file = file = self._find_file()
        references = self.read_references(file)
        if not isinstance(references, list):
            raise FileError(f"{file}: expected a list of references")
        for position, reference in enumerate(references):
            if not isinstance(reference, dict):
                raise FileError(f"{file}: reference {position} is no object")
        mine = [(place, row) for place, row in enumerate(references) if row.get("split") == self.split]
        rows = [row for place, reference in mine for row in self._read_reference(reference, place)]
        if not rows:
            splits = ", ".join(sorted({str(reference.get("split")) for reference in references}))
            raise FileError(f"{file}: no reference of split {self.split!r}; there are {splits}")
        for place in duplicates(row.id for row in rows):
            rows[place] = self._bad(rows[place].id, "the reference occurs twice")
        self._instances = read_instances(Path(self.root) / "instances.json")
        one = "sentence" if self.count == "expression" else "reference"
        rank_zero_info(f"{file}: split {self.split}: {len(rows)} samples, one per {one}, of {len(mine)} references")
        return rows

    def make_sample(self, row: InstancesRow, open_image: ImageOpener) -> Sample:
        try:
            return cast("Instances", self._instances).sample(row, self.images, open_image)
        except ValueError as error:
            raise FileError(f"{self._file}: {row.id}: {error}") from None

    def _find_file(self) -> Path:
        """The references file."""
        root = Path(self.root)
        if self.split_by is not None:
            return root / self.pattern.format(self.split_by)
        found = sorted(root.glob(self.pattern.format("*")))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise FileError(f"{root}: expected one {self.pattern.format('…')}, found {names}; set split_by")
        return found[0]

    def _read_reference(self, reference: Mapping[str, Any], position: int) -> list[InstancesRow | BadRow]:
        name = str(reference.get("ref_id", f"item {position}"))
        try:
            annotations = _annotation_ids(reference.get("ann_id"))
        except ValueError as error:
            return [self._bad(name, str(error))]
        image_id, sentences = reference.get("image_id"), reference.get("sentences")
        if "ref_id" not in reference or not isinstance(image_id, int):
            return [self._bad(name, "no ref_id or image_id")]
        if not isinstance(sentences, list | tuple) or not sentences:
            return [self._bad(name, "no sentences")]
        object_id = f"{image_id}#" + ("+".join(str(one) for one in sorted(annotations)) or f"none#{name}")
        named = {name: sentences[0]} if self.count == "object" else {f"{name}#{n}": s for n, s in enumerate(sentences)}
        rows: list[InstancesRow | BadRow] = []
        for row_id, sentence in named.items():
            text = sentence.get("sent") if isinstance(sentence, Mapping) else None
            if isinstance(text, str) and text.strip():
                rows.append(InstancesRow(row_id, image_id, text, annotations, object_id=object_id))
            else:
                rows.append(self._bad(row_id, "the sentence is empty"))
        return rows

    def _bad(self, name: str, problem: str) -> BadRow:
        return BadRow(name, f"{self._file}: {name}: {problem}")


class RefCOCO(ReferringExpressions):
    """RefCOCO, RefCOCO+ and RefCOCOg as published: `refs(unc).p` (RefCOCOg: `umd`) beside `instances.json`.

    The references are a pickle; it is read without running anything that it may hold.
    """

    pattern = "refs({}).p"

    def read_references(self, path: Path) -> Any:
        return read_pickle(path)


class GRefCOCO(ReferringExpressions):
    """gRefCOCO as published: `grefs(unc).json` beside `instances.json`; a reference has several targets or none."""

    pattern = "grefs({}).json"

    def read_references(self, path: Path) -> Any:
        return read_json(path)


def _annotation_ids(value: object) -> list[int]:
    """Annotation ids of a reference: one, several, or none, written −1."""
    ids: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    if not ids or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise FileError("ann_id is no whole number and no list of them")
    if NO_TARGET in ids and len(ids) > 1:
        raise FileError(f"ann_id holds −1, that is no target, beside others: {ids}")
    if len(set(ids)) < len(ids):
        raise FileError(f"ann_id names an annotation twice: {ids}")
    return [] if NO_TARGET in ids else ids
