"""The field's published data sets: where they are, and which source reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pixelthink.data.base import SampleSource
from pixelthink.data.sources.reasonseg import IMAGE_SUFFIXES, ReasonSeg
from pixelthink.data.sources.reasonseg_diff import ReasonSegDiff
from pixelthink.data.sources.reasonseg_parquet import ReasonSegParquet
from pixelthink.data.sources.refcoco import RefCOCO
from pixelthink.data.sources.training_rows import RefCOCOg840, VisionReasonerRows
from pixelthink.errors import UserError

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Local:
    """Where a set lies on this machine.

    Attributes:
        path: Its folder, or file.
        images: Folder of the images, for sets that have them elsewhere.
        split: Split to read, for sets with several.
        split_by: Who made the splits, for RefCOCO, RefCOCO+ and RefCOCOg.
    """

    path: Path
    images: Path | None = None
    split: str | None = None
    split_by: str | None = None

    def need_images(self, what: str) -> str:
        """The image folder.

        Raises:
            UserError: it was not given; says that `what` is wanted.
        """
        if self.images is None:
            raise UserError(f"--images is missing: {what}")
        return str(self.images)


@dataclass(frozen=True)
class PublishedSet:
    """A data set.

    Attributes:
        about: What it is.
        source: Where the name comes from, or where to get it by hand.
        open: The source that reads it.
        hub: `OWNER/NAME` on the Hugging Face hub; None where the released code and READMEs name no hub location.
        split: Default of `Local.split` for sets with several splits.
        takes: Fields of `Local` that `open` uses beside the path.
        size: As far as it is known without asking anyone.
        licence: As far as its publishers state one.
    """

    about: str
    source: str
    open: Callable[[Local], SampleSource]
    hub: str | None = None
    split: str | None = None
    takes: tuple[str, ...] = ()
    size: str = UNKNOWN
    licence: str = UNKNOWN


def _reasonseg(place: Local) -> SampleSource:
    """ReasonSeg as LISA publishes it where there are images, else Seg-Zero's table."""
    if place.path.is_dir() and any(file.suffix.lower() in IMAGE_SUFFIXES for file in place.path.iterdir()):
        return ReasonSeg(str(place.path))
    return ReasonSegParquet(str(place.path), "test")  # Seg-Zero pushes both sets under this split's name


def _reasonseg_diff(place: Local) -> SampleSource:
    return ReasonSegDiff(ReasonSeg(place.need_images("the folder of ReasonSeg's X.jpg + X.json")), str(place.path))


def _refcoco(place: Local) -> SampleSource:
    images = place.need_images("the folder of COCO's train2014")
    return RefCOCO(str(place.path), images, place.split or "val", place.split_by)


def _rows(place: Local) -> SampleSource:
    return RefCOCOg840(str(place.path))


def _objects(place: Local) -> SampleSource:
    return VisionReasonerRows(str(place.path))


_SEG_ZERO = "Seg-Zero's README"
_LISA = "by hand: the Google Drive folder in LISA's README"
_DRIVE = "by hand: the Google Drive folder in PixelThink's README"
_REFER = "by hand: the archived copies of refer's files (refs(…).p, instances.json) in LISA's README; COCO's train2014"
_REFER_TAKES = ("images", "split", "split_by")

PUBLISHED: dict[str, PublishedSet] = {
    "refCOCOg_2k_840": PublishedSet(
        "training rows of Seg-Zero's first release",
        f"{_SEG_ZERO} at 233c93d",
        _rows,
        "Ricky06662/refCOCOg_2k_840",
        size="about 2,000 rows, by its name",
    ),
    "refCOCOg_9k_840": PublishedSet(
        "training rows of PixelThink and Seg-Zero",
        _SEG_ZERO,
        _rows,
        "Ricky06662/refCOCOg_9k_840",
        size="about 9,000 rows, by its name",
    ),
    "VisionReasoner_multi_object_1k_840": PublishedSet(
        "training rows of VisionReasoner",
        _SEG_ZERO,
        _objects,
        "Ricky06662/VisionReasoner_multi_object_1k_840",
        size="about 1,000 rows, by its name",
    ),
    "VisionReasoner_multi_object_7k_840": PublishedSet(
        "training rows of VisionReasoner",
        _SEG_ZERO,
        _objects,
        "Ricky06662/VisionReasoner_multi_object_7k_840",
        size="about 7,000 rows, by its name",
    ),
    "ReasonSeg_train": PublishedSet("ReasonSeg, training set, X.jpg + X.json", _LISA, _reasonseg, size="239 images"),
    "ReasonSeg_val": PublishedSet(
        "ReasonSeg, validation set; --from also takes X.jpg + X.json, which keep the ignored regions",
        _SEG_ZERO,
        _reasonseg,
        "Ricky06662/ReasonSeg_val",
        size="200 images",
    ),
    "ReasonSeg_test": PublishedSet(
        "ReasonSeg, test set; --from also takes X.jpg + X.json, which keep the ignored regions",
        _SEG_ZERO,
        _reasonseg,
        "Ricky06662/ReasonSeg_test",
        size="779 images",
    ),
    "ReasonSeg-Diff_val": PublishedSet(
        "difficulty and reasoning for ReasonSeg's val set", _DRIVE, _reasonseg_diff, takes=("images",)
    ),
    "ReasonSeg-Diff_test": PublishedSet(
        "difficulty and reasoning for ReasonSeg's test set", _DRIVE, _reasonseg_diff, takes=("images",)
    ),
    "refcoco": PublishedSet(
        "RefCOCO: splits train, val, testA, testB", _REFER, _refcoco, split="val", takes=_REFER_TAKES
    ),
    "refcoco+": PublishedSet(
        "RefCOCO+: splits train, val, testA, testB", _REFER, _refcoco, split="val", takes=_REFER_TAKES
    ),
    "refcocog": PublishedSet("RefCOCOg: splits train, val, test", _REFER, _refcoco, split="val", takes=_REFER_TAKES),
}
"""Ids and names as the released code and READMEs give them (Seg-Zero 42a3345, PixelThink 052d9de, LISA 022a8bc).

Rows of training sets are as their names say, images of ReasonSeg as LISA's README says."""

DIFFICULTY = "difficulty"
"""The name under which the tool fetches PixelThink's ratings, which are a file and no data set."""
DIFFICULTY_FILE = "refcoco_train_labeled_merged.json"
"""What PixelThink's training scripts call it."""
DIFFICULTY_SOURCE = _DRIVE
