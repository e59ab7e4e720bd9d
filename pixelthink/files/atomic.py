"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes a file beside its place and moves it there; a reader sees the old file or the whole new one.

    Args:
        path: The file; its folder must be there.
        data: Bytes, or text that is written as UTF-8.

    Raises:
        OSError: it cannot be written; the old file is still there.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        scratch.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
