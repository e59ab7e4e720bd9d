"""Fetches the field's published data sets and converts them into the checked format.

    python tools/get_data.py list
    python tools/get_data.py refCOCOg_9k_840
    python tools/get_data.py refcocog --from data/refer/refcocog --images data/coco/train2014 --split test
    python tools/get_data.py difficulty --from Downloads/refcoco_train_labeled_merged.json

A set of the hub lies in ROOT/NAME afterwards, as published, where the training configs look, and in ROOT/checked/NAME
in the checked format (see tools/prepare_data.py). The download is checked against the hub's digests, and goes on where
it was interrupted when the same command is given again. HF_ENDPOINT names another hub, HF_TOKEN a key. Sets without a
hub location are got by hand and converted with --from.

Exit code 0; 1 where no sample or no rating could be used; 2 with one line on standard error where something is wrong,
also where an option would do nothing.
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

OPTIONS = ("from", "images", "split", "split_by", "root", "revision", "convert", "workers")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        options = build_parser().parse_args(arguments)
        if options.name not in ("list", DIFFICULTY, *PUBLISHED):
            raise UserError(f"there is no set {options.name!r}; there are {', '.join([*PUBLISHED, DIFFICULTY])}")
        refuse_idle(options)
        if options.name == "list":
            print_list()
            return 0
        if options.name == DIFFICULTY:
            return get_difficulty(options["from"], root_of(options))
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
    parser.add_argument("--root", type=str, help="Folder of all sets; PIXELTHINK_DATA, or data, by default.")
    parser.add_argument("--revision", type=str, help="Branch, tag or commit on the hub; main by default.")
    parser.add_argument("--convert", type=bool | None, help="Write the checked format too; true by default.")
    parser.add_argument("--workers", type=int | None, help="Processes that convert; 1 by default.")
    return parser


def refuse_idle(options: Namespace) -> None:
    """Refuses options that the named set cannot use.

    Raises:
        UserError: one line that names each of them and says why.
    """
    idle = idle_options(options)
    if given := [option for option in OPTIONS if options[option] is not None and option in idle]:
        raise UserError("; ".join(f"--{option} would do nothing, {idle[option]}" for option in given))


def idle_options(options: Namespace) -> dict[str, str]:
    """The options that would do nothing, and why."""
    name = options.name
    if name == "list":
        return dict.fromkeys(OPTIONS, "list takes no options")
    if name == DIFFICULTY:
        others = (option for option in OPTIONS if option not in ("from", "root"))
        return dict.fromkeys(others, f"{DIFFICULTY} is a file that is copied; it takes --from and --root only")
    entry, idle = PUBLISHED[name], dict[str, str]()
    if options.convert is False:
        idle |= dict.fromkeys(("images", "split", "split_by", "workers"), "nothing is converted with --convert false")
    lacks = {
        "images": f"{name} has no images elsewhere",
        "split": f"{name} has no splits to choose from",
        "split_by": f"{name} has no splits to choose from",
    }
    idle |= {option: why for option, why in lacks.items() if option not in entry.takes}
    if entry.hub is None:
        idle["revision"] = f"{name} has no hub location"
    elif options["from"] is not None:
        idle["revision"] = "nothing is downloaded with --from"
    if options["from"] is not None and options.convert is False:
        idle["convert"] = "there is nothing to do with --from but to convert"
    return idle


def root_of(options: Namespace) -> Path:
    """Folder of all sets."""
    return Path(os.environ.get("PIXELTHINK_DATA", "data") if options.root is None else options.root)


def print_list() -> None:
    """Prints name, content, size, licence and source of every set."""
    for name, entry in PUBLISHED.items():
        where = f"hub {entry.hub} ({entry.source})" if entry.hub else entry.source
        print(f"{name}\n    {entry.about}\n    size {entry.size}, licence {entry.licence}\n    {where}")
    print(f"{DIFFICULTY}\n    PixelThink's ratings of refCOCOg_9k_840, {DIFFICULTY_FILE}")
    print(f"    size {UNKNOWN}, licence {UNKNOWN}\n    {DIFFICULTY_SOURCE}")


def get(name: str, entry: PublishedSet, options: Namespace) -> int:
    """Downloads a set, or takes what is local, and converts it; returns the exit code."""
    root, source_name = root_of(options), name
    if options["from"] is not None:
        path = existing(options["from"])
    elif entry.hub is None:
        raise UserError(f"{name} has no hub location ({entry.source}); convert what you have with --from FOLDER")
    else:
        path = root / name
        made = download(entry.hub, path, options.revision or "main")
        size = sum(made.sizes.values()) / 1e6
        print(f"{path}: {entry.hub} at {made.commit}, {len(made.files)} files, {size:.1f} MB, digests agree")
        source_name = f"{name}@{made.commit[:12]}"
    if options.convert is False:
        return 0
    split = entry.split if options.split is None else options.split
    images = None if options.images is None else existing(options.images)
    source = entry.open(Local(path, images, split, options.split_by))
    source.setup()
    licence = None if entry.licence == UNKNOWN else entry.licence
    output = root / "checked" / (name if split is None else f"{name}_{split}")
    workers = 1 if options.workers is None else options.workers
    return convert(source, output, PrepareOptions(source_name, licence, workers=workers), 24)


def get_difficulty(given: str | None, root: Path) -> int:
    """Copies the released ratings to where the configs look for them; returns the exit code."""
    if given is None:
        raise UserError(f"{DIFFICULTY} has no hub location ({DIFFICULTY_SOURCE}); give the file with --from")
    path = existing(given)
    path = existing(str(path / DIFFICULTY_FILE)) if path.is_dir() else path
    table = read_table(path)
    if not table.usable:
        faults = "; ".join(table.complaints()) or "the list is empty"
        print(f"error: {path}: no usable rating, so nothing was copied: {faults}", file=sys.stderr)
        return 1
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
