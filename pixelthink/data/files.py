"""Reading what other people wrote: JSON in two encodings, and pickles that may hold data only."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SAFE_GLOBALS = {
    (module, name): kind
    for module in ("builtins", "__builtin__")
    for name, kind in {"list": list, "dict": dict, "tuple": tuple, "set": set, "frozenset": frozenset}.items()
}
"""The only things a pickle may ask for by name: older protocols write sets as calls of them."""


def read_bytes(path: str | Path) -> bytes:
    """A file's bytes.

    Raises:
        ValueError: the file cannot be read; one line that begins with the path.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


def read_json(path: str | Path) -> Any:
    """A JSON value from UTF-8 text (a byte-order mark is ignored), else from cp1252, a superset of Latin-1's letters.

    Raises:
        ValueError: the file cannot be read or holds no JSON; one line that begins with the path.
    """
    data = read_bytes(path)
    try:
        try:
            return json.loads(data.decode("utf-8-sig"))
        except UnicodeDecodeError:
            return json.loads(data.decode("cp1252"))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: neither UTF-8 nor cp1252 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path}: not usable JSON: {error}") from None


def read_pickle(path: str | Path) -> Any:
    """Builtin containers, text and numbers from a pickle; nothing that it holds is ever called.

    Pickles of Python 2 hold byte strings, which are read as UTF-8, or as Latin-1 where they are none.

    Raises:
        ValueError: the file cannot be read, is damaged, or asks for anything but a builtin container; one line.
    """
    data = read_bytes(path)
    try:
        try:
            return _DataUnpickler(io.BytesIO(data), encoding="utf-8").load()
        except UnicodeDecodeError:
            return _DataUnpickler(io.BytesIO(data), encoding="latin-1").load()
    except _RefusedError as error:
        raise ValueError(
            f"{path}: refused: the pickle asks for {error}, and only builtin containers are unpickled"
        ) from None
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ValueError(f"{path}: not a readable pickle: {reason}") from None


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
    found: dict[int, int] = {}
    for position, name in enumerate(ids):
        if (earlier := first.setdefault(name, position)) != position:
            found[position] = earlier
    return found
