"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pixelthink.errors import FileError, UserError


@contextmanager
def atomic_file(path: Path, *, shared: bool = False) -> Iterator[IO[bytes]]:
    """Opens a file that replaces `path` when the block ends: a reader sees the old file or the whole new one.

    The folder is made if missing. If the block raises, `path` stays as it was and nothing else is left. The file is
    written as `.NAME.tmp`: if the process is killed, the next write replaces what is left.

    Args:
        path: The file to replace.
        shared: Several processes may write it at once; each uses a temporary name of its own.

    Raises:
        FileError: the file cannot be written; names it.
    """
    scratch = path.with_name(f".{path.name}{f'.{os.getpid()}' if shared else ''}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except UserError:
        raise
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if path.parent.is_dir():
            scratch.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes | str, *, shared: bool = False) -> None:
    """Writes bytes, or text as UTF-8; everything else as in `atomic_file`."""
    with atomic_file(path, shared=shared) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)


def write_error(path: str | Path, error: OSError) -> FileError:
    """A one-line error that names the file; its `strerror` is the reason alone."""
    named = FileError(f"{path} cannot be written: {error.strerror or error}")
    named.strerror = error.strerror
    return named
