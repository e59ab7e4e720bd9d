"""Converts any source into the checked format, and shows what came out.

    python tools/prepare_data.py --source ReasonSeg --source.root data/val --output data/val_checked
    python tools/prepare_data.py --source LabelMe --source.root my_photos --output my_data --workers 4
    python tools/prepare_data.py --config my_source.yaml --output my_data

The folder then holds the data set, which the source `Checked` reads; `contact_sheet.png`, to be looked at;
`rejected.jsonl`, every sample that cannot be used and why; and `summary.json`. A conversion that was interrupted goes
on where it stopped when the same command is given again. `python tools/list_components.py --kind "sample source"`
lists the sources and their arguments.

Exit code 0; 1 where no sample could be used; 2 with one line on standard error where something is wrong with the call
or the source.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields

from jsonargparse import ArgumentError, ArgumentParser

from pixelthink.cli.messages import instantiate
from pixelthink.cli.registry import load_components
from pixelthink.data.base import SampleSource
from pixelthink.data.convert import convert
from pixelthink.data.prepare import PrepareOptions
from pixelthink.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        load_components()
        parser = build_parser()
        options = instantiate(parser, parser.parse_args(arguments))
        how = PrepareOptions(**{field.name: options[field.name] for field in fields(PrepareOptions)})
        options.source.setup()
        return convert(options.source, options.output, how, options.contact_sheet)
    except (ArgumentError, UserError, OSError) as error:
        print(f"error: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 2


def build_parser() -> ArgumentParser:
    """The options."""
    parser = ArgumentParser(prog="prepare_data.py", description=(__doc__ or "").split("\n")[0], exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_argument("--source", type=SampleSource, required=True, help="What to convert.")
    parser.add_argument("--output", type=str, required=True, help="Folder of the data set.")
    parser.add_class_arguments(PrepareOptions)
    parser.add_argument("--contact_sheet", type=int, default=24, help="Samples on the contact sheet; 0 for none.")
    return parser


if __name__ == "__main__":
    sys.exit(main())
