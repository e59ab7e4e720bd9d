"""Reading what other people wrote: folders, JSON in two encodings, and pickles that may hold data only."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pixelthink.errors import FileError, MissingFileError

SAFE_GLOBALS = {
    (module, kind.__name__): kind
    for module in ("builtins", "__builtin__")
    for kind in (list, dict, tuple, set, frozenset)
}
"""The only things a pickle may ask for by name: older protocols write sets as calls of them."""


def existing_folder(path: str | Path) -> Path:
    """The folder at a path; raises MissingFileError, with the path, where there is none."""
    if not (folder := Path(path)).is_dir():
        raise MissingFileError(f"{folder}: there is no such folder")
    return folder


def read_bytes(path: str | Path) -> bytes:
    """The content of a file; raises FileError, with the path, where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from None


def read_json(path: str | Path) -> Any:
    """A JSON value from UTF-8 text (a byte-order mark is ignored), else from cp1252, a superset of Latin-1's letters.

    Raises:
        FileError: the file cannot be read or holds no JSON; one line that begins with the path.
    """
    data = read_bytes(path)
    try:
        try:
            return json.loads(data.decode("utf-8-sig"))
        except UnicodeDecodeError:
            return json.loads(data.decode("cp1252"))
    except UnicodeDecodeError:
        raise FileError(f"{path}: neither UTF-8 nor cp1252 text") from None
    except json.JSONDecodeError as error:
        raise FileError(f"{path}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except (RecursionError, ValueError) as error:
        raise FileError(f"{path}: not usable JSON: {error}") from None


def read_pickle(path: str | Path) -> Any:
    """Builtin containers, text and numbers from a pickle; nothing that it holds is ever called.

    Pickles of Python 2 hold byte strings, which are read as UTF-8, or as Latin-1 where they are none.

    Raises:
        FileError: the file cannot be read, is damaged, or asks for anything but a builtin container; one line.
    """
    data = read_bytes(path)
    try:
        try:
            return _DataUnpickler(io.BytesIO(data), encoding="utf-8").load()
        except UnicodeDecodeError:
            return _DataUnpickler(io.BytesIO(data), encoding="latin-1").load()
    except _RefusedError as error:
        reason = f"refused: the pickle asks for {error}, and only builtin containers are unpickled"
    except Exception as error:  # a damaged pickle raises any exception
        reason = f"not a readable pickle: {' '.join(str(error).split())[:100] or type(error).__name__}"
    raise FileError(f"{path}: {reason}")


class _RefusedError(pickle.UnpicklingError):
    """A pickle asked for something that might run code."""


class _DataUnpickler(pickle.Unpickler):
    """An unpickler that knows no names but those of builtin containers."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return SAFE_GLOBALS[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}"[:80]) from None


def duplicates(ids: Iterable[str]) -> dict[int, int]:
    """Position → first position of the same id, for every id that came before."""
    first: dict[str, int] = {}
    return {i: first[name] for i, name in enumerate(ids) if first.setdefault(name, i) != i}
