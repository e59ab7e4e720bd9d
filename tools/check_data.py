"""Looks at every row of a data set in the checked format.

    python tools/check_data.py data/val_checked

Prints one line for each thing that is wrong, then how many there were; exit code 1 where there were any.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from pixelthink.data.sources.checked import validate


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = ArgumentParser(prog="check_data.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("path", type=str, help="Folder of the data set.")
    count = 0
    for line in validate(parser.parse_args(arguments).path):
        print(line)
        count += 1
    print(f"{count} problems" if count else "no problems")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
