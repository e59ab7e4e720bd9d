"""What several tests share."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
GOLDENS = Path(__file__).parent / "goldens"


def golden_rows(name: str) -> list[dict[str, Any]]:
    """Rows of a golden file, computed with the released functions (see `tests/goldens/README.md`)."""
    with gzip.open(GOLDENS / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
