"""How far two difficulty files agree.

    python tools/compare_difficulty.py rated.json estimated.json

Prints one JSON object: how many ids both hold and how many only one does, Pearson's, Spearman's and Kendall's
correlation, the mean absolute difference, and for each level of the first file how many of its samples have which level
in the second.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser

from pixelthink.data.difficulty import read_difficulties
from pixelthink.errors import UserError
from pixelthink.types import LEVELS, difficulty_level


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = ArgumentParser(prog="compare_difficulty.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("first", type=str, help="Difficulties in the released format.")
    parser.add_argument("second", type=str, help="Others.")
    options = parser.parse_args(arguments)
    try:
        result = compare(read_difficulties(options.first), read_difficulties(options.second))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result, indent=1))
    return 0


def compare(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, Any]:
    """The report.

    Raises:
        UserError: fewer than two ids are in both.
    """
    from scipy import stats

    shared = [name for name in first if name in second]
    if len(shared) < 2:
        raise UserError(f"the files share {len(shared)} ids; a correlation needs two")
    a = np.array([first[name] for name in shared])
    b = np.array([second[name] for name in shared])
    constant = np.ptp(a) == 0 or np.ptp(b) == 0
    rules = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}
    levels = Counter((difficulty_level(x), difficulty_level(y)) for x, y in zip(a, b, strict=True))
    return {
        "shared": len(shared),
        "only_first": len(first) - len(shared),
        "only_second": len(second) - len(shared),
        **{name: None if constant else float(rule(a, b)[0]) for name, rule in rules.items()},
        "mean_absolute_difference": float(np.abs(a - b).mean()),
        "levels": {x: {y: levels[x, y] for y in LEVELS} for x in LEVELS},
    }


if __name__ == "__main__":
    sys.exit(main())
