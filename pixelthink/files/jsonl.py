"""JSON Lines in and out: one object a line, every complaint names `FILE:ROW`, nothing half-written.

Files whose name ends in `.gz` are read and written compressed.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pixelthink.errors import FileError


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
        FileNotFoundError: there is no such file.
        ValueError: a line that is not UTF-8, not JSON or not an object; `FILE:ROW: why`, one line.
    """
    with _open_binary(Path(path)) as stream:
        lines = enumerate(stream, start=1)
        while True:
            try:
                row, line = next(lines)
            except StopIteration:
                return
            except (EOFError, gzip.BadGzipFile) as error:
                raise ValueError(f"{path}: damaged gzip file: {error}") from None
            if line.strip():
                yield row, _parse_row(path, row, line)


def write_rows_atomically(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows to a temporary file beside `path`, then renames it: readers see the old file or the whole new one.

    Rows may come from a generator that raises; then, as when the disk is full, `path` stays as it was and the
    temporary file is removed. NaN and infinity are refused, because they are not JSON.

    Args:
        path: Where the file goes; its folder is made if missing.
        rows: The objects, one a line.

    Returns:
        The number of rows written.

    Raises:
        OSError: the file cannot be written.
        ValueError: a row that JSON cannot hold; `FILE:ROW: why`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as raw:
            count = _write_rows(target, raw, rows)
            raw.flush()
            os.fsync(raw.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return count


def read_log(path: str | Path) -> list[Any]:
    """The values of a file to which programs append one JSON value a line; empty where there is no such file.

    A last line without its end was being written when the program died; it is cut off, so that appending can go on.

    Raises:
        OSError: the file cannot be read, or not be cut.
        ValueError: another line is not JSON; `FILE:ROW: why`.
    """
    file = Path(path)
    if not file.is_file():
        return []
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(file, len(whole))
    values = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError):
            raise row_error(path, number, "not JSON") from None
    return values


def append_log(path: str | Path, values: Iterable[Any]) -> None:
    """Appends JSON values, one a line, in one write that is on the disk when this returns."""
    lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    with Path(path).open("ab") as file:
        file.write(lines.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def _open_binary(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


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


def _write_rows(target: Path, raw: IO[bytes], rows: Iterable[Mapping[str, Any]]) -> int:
    out: IO[bytes] = raw
    if target.suffix == ".gz":  # no name and time 0: equal rows give equal bytes
        out = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)  # type: ignore[assignment]
    count = 0
    try:
        for count, row in enumerate(rows, start=1):
            try:
                text = json.dumps(row, ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise row_error(target, count, error) from None
            out.write(text.encode("utf-8") + b"\n")
    finally:
        if out is not raw:
            out.close()
    return count


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
