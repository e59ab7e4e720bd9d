"""JSON Lines: one JSON object a line; errors name `FILE:ROW`. Files with names that end in `.gz` are compressed."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pixelthink.errors import FileError, MissingFileError, UserError
from pixelthink.files.atomic import atomic_file, write_error


def row_error(path: str | Path, row: int, message: object) -> FileError:
    """A one-line `FileError` in the form `FILE:ROW: message`; line breaks in the message become spaces."""
    return FileError(f"{path}:{row}: {' '.join(str(message).split())}")


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads a JSON Lines file row by row.

    Args:
        path: UTF-8 text (a byte-order mark is ignored), or gzip of it where the name ends in `.gz`. Blank lines are
            skipped but counted.

    Yields:
        `(row, object)`, where `row` is the line number, from 1.

    Raises:
        MissingFileError: there is no such file.
        FileError: it cannot be read, or a line is not UTF-8, not JSON or not an object; `FILE:ROW: why`, one line.
    """
    try:
        with gzip.open(path, "rb") if Path(path).suffix == ".gz" else Path(path).open("rb") as stream:
            for row, line in enumerate(stream, start=1):
                if line.strip():
                    yield row, _parse_row(path, row, line)
    except UserError:
        raise
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FileError(f"{path}: damaged gzip file: {error}") from None
    except OSError as error:
        kind = MissingFileError if isinstance(error, FileNotFoundError) else FileError
        raise kind(f"{path}: {error.strerror or error}") from None


def write_rows_atomically(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows, one a line, by `atomic.atomic_file`; rows may come from a generator that raises.

    Returns:
        The number of rows written.

    Raises:
        FileError: the file cannot be written; or a row cannot be written as JSON, e.g. has a NaN, `FILE:ROW: why`.
    """
    target = Path(path)
    count = 0
    with atomic_file(target) as raw:
        packed = target.suffix == ".gz"  # no name and time 0: equal rows give equal bytes
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) if packed else nullcontext(raw) as out:
            for count, row in enumerate(rows, start=1):
                try:
                    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
                except (TypeError, ValueError) as error:
                    raise row_error(target, count, error) from None
                out.write(text.encode("utf-8") + b"\n")
    return count


def read_log(path: str | Path) -> list[Any]:
    """The values of a file to which programs append one JSON value a line; empty where there is no such file.

    A last line without its end was being written when the program died; it is cut off, so that appending can go on.

    Raises:
        FileError: the file cannot be read or cut, or another line is not JSON; `FILE:ROW: why`.
    """
    file = Path(path)
    if not file.is_file():
        return []
    try:
        data = file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(file, len(whole))
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from None
    values = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError):
            raise row_error(path, number, "not JSON") from None
    return values


def append_log(path: str | Path, values: Iterable[Any]) -> None:
    """Appends JSON values, one a line, in one write that is on the disk when this returns; makes the folder if missing.

    Raises:
        FileError: the file cannot be written.
    """
    lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("ab") as file:
            file.write(lines.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error) from error


def _parse_row(path: str | Path, row: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig" if row == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise row_error(path, row, f"not UTF-8 text at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise row_error(path, row, f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise row_error(path, row, "not usable JSON: nested too deeply") from None
    except ValueError as error:  # e.g. an integer of more than 4300 digits
        raise row_error(path, row, f"not usable JSON: {error}") from None
    if not isinstance(value, dict):
        raise row_error(path, row, f"expected a JSON object, found {type(value).__name__}")
    return value
