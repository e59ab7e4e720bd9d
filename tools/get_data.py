"""Fetches the field's published data sets and converts them into the checked format.

    python tools/get_data.py list
    python tools/get_data.py refCOCOg_9k_840
    python tools/get_data.py refcocog --from data/refer/refcocog --images data/coco/train2014 --split test
    python tools/get_data.py difficulty --from Downloads/refcoco_train_labeled_merged.json

A set of the hub lies in ROOT/NAME afterwards, as published, where the training configs look, and in ROOT/checked/NAME
in the checked format (see tools/prepare_data.py). The download is checked against the hub's digests, and goes on where
it was interrupted when the same command is given again. HF_ENDPOINT names another hub, HF_TOKEN a key. Sets without a
hub location are got by hand and converted with --from.

Exit code 0; 1 where no sample could be used; 2 with one line on standard error where something is wrong.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from pixelthink.data.convert import convert
from pixelthink.data.difficulty import read_table
from pixelthink.data.hub import download
from pixelthink.data.prepare import PrepareOptions
from pixelthink.data.published_sets import (
    DIFFICULTY,
    DIFFICULTY_FILE,
    DIFFICULTY_SOURCE,
    PUBLISHED,
    UNKNOWN,
    Local,
    PublishedSet,
)
from pixelthink.errors import MissingFileError, UserError
from pixelthink.files.atomic import atomic_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        options = build_parser().parse_args(arguments)
        if options.name == "list":
            print_list()
            return 0
        if options.name == DIFFICULTY:
            return get_difficulty(options["from"], Path(options.root))
        if options.name not in PUBLISHED:
            raise UserError(f"there is no set {options.name!r}; there are {', '.join([*PUBLISHED, DIFFICULTY])}")
        return get(options.name, PUBLISHED[options.name], options)
    except (ArgumentError, UserError, OSError) as error:
        print(f"error: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 2


def build_parser() -> ArgumentParser:
    """The options."""
    parser = ArgumentParser(prog="get_data.py", description=(__doc__ or "").split("\n")[0], exit_on_error=False)
    parser.add_argument("name", type=str, help="Name of the set, or list.")
    parser.add_argument("--from", type=str, help="Folder or file that has the set already; nothing is downloaded.")
    parser.add_argument("--images", type=str, help="Folder of the images, where the set has them elsewhere.")
    parser.add_argument("--split", type=str, help="Split, for sets with several.")
    parser.add_argument("--split_by", type=str, help="Who made the splits of RefCOCO, RefCOCO+ or RefCOCOg.")
    root = os.environ.get("PIXELTHINK_DATA", "data")
    parser.add_argument("--root", type=str, default=root, help="Folder of all sets; PIXELTHINK_DATA by default.")
    parser.add_argument("--revision", type=str, default="main", help="Branch, tag or commit on the hub.")
    parser.add_argument("--convert", type=bool, default=True, help="Write the checked format too.")
    parser.add_argument("--workers", type=int, default=1, help="Processes that convert.")
    return parser


def print_list() -> None:
    """Prints name, content, size, licence and source of every set."""
    for name, entry in PUBLISHED.items():
        where = f"hub {entry.hub} ({entry.source})" if entry.hub else entry.source
        print(f"{name}\n    {entry.about}\n    size {entry.size}, licence {entry.licence}\n    {where}")
    print(f"{DIFFICULTY}\n    PixelThink's ratings of refCOCOg_9k_840, {DIFFICULTY_FILE}")
    print(f"    size {UNKNOWN}, licence {UNKNOWN}\n    {DIFFICULTY_SOURCE}")


def get(name: str, entry: PublishedSet, options: Namespace) -> int:
    """Downloads a set, or takes what is local, and converts it; returns the exit code."""
    root, source_name = Path(options.root), name
    if options["from"] is not None:
        path = existing(options["from"])
    elif entry.hub is None:
        raise UserError(f"{name} has no hub location ({entry.source}); convert what you have with --from FOLDER")
    else:
        path = root / name
        made = download(entry.hub, path, options.revision)
        print(f"{path}: {entry.hub} at {made.commit}, {len(made.files)} files, {made.size / 1e6:.1f} MB, digests agree")
        source_name = f"{name}@{made.commit[:12]}"
    if not options.convert:
        return 0
    split = options.split or entry.split
    if split is not None and entry.split is None:
        raise UserError(f"{name} has no splits to choose from; leave --split out")
    images = None if options.images is None else existing(options.images)
    source = entry.open(Local(path, images, split, options.split_by))
    source.setup()
    licence = None if entry.licence == UNKNOWN else entry.licence
    output = root / "checked" / (name if split is None else f"{name}_{split}")
    return convert(source, output, PrepareOptions(source_name, licence, workers=options.workers), 24)


def get_difficulty(given: str | None, root: Path) -> int:
    """Copies the released ratings to where the configs look for them, and says what is in them."""
    if given is None:
        raise UserError(f"{DIFFICULTY} has no hub location ({DIFFICULTY_SOURCE}); give the file with --from")
    path = existing(given)
    path = existing(str(path / DIFFICULTY_FILE)) if path.is_dir() else path
    table = read_table(path)
    with path.open("rb") as original, atomic_file(root / DIFFICULTY_FILE) as copy:
        shutil.copyfileobj(original, copy)
    print(f"{root / DIFFICULTY_FILE}: {len(table.usable)} usable ratings")
    if table.faults:
        print(f"{'; '.join(table.complaints())}; a run refuses them unless difficulty.on_fault is drop or fill")
    return 0


def existing(path: str) -> Path:
    """A path at which there is something.

    Raises:
        MissingFileError: there is nothing.
    """
    if not Path(path).exists():
        raise MissingFileError(f"{path}: there is no such file or folder")
    return Path(path)


if __name__ == "__main__":
    sys.exit(main())
