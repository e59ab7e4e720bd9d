"""What a run has answered so far, on disk batch by batch, so that a run that was killed goes on where it was.

Each process appends to a file of its own, `samples.part-RANK.jsonl`: first the settings under which it answers, then a
row a sample. The files go when the results have been written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pixelthink.errors import UserError
from pixelthink.evaluation.results import Row
from pixelthink.files.jsonl import append_log, read_log

PARTS = "samples.part-*.jsonl"


class Journal:
    """The rows of a run under way.

    Args:
        folder: Folder of the results; made where it is missing.
        settings: All that the answers and their numbers depend on; rows of other settings are refused.
        rank: This process.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], rank: int = 0) -> None:
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))  # as it will be read again
        self.path = self.folder / PARTS.replace("*", str(rank))

    def read(self) -> dict[str, Row]:
        """The rows that an interrupted run has left here, of all its processes, by id; a later one replaces an earlier.

        Lines that were being written when the run died are cut off. To be called by one process, before `start`.

        Raises:
            UserError: the rows were made under other settings, which are named, or a file is damaged; one line.
        """
        rows: dict[str, Row] = {}
        for path in sorted(self.folder.glob(PARTS)):
            values = read_log(path)
            if not values:
                continue
            self._check(values[0], path)
            try:
                rows |= {row["id"]: row for row in values[1:]}
            except (KeyError, TypeError):
                raise UserError(f"{path}: not the rows of an evaluation; remove it to start anew") from None
        return rows

    def start(self) -> None:
        """Opens this process's file for rows to come.

        Raises:
            OSError: the file cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        values = read_log(self.path)
        if not values or values[0] != {"settings": self.settings}:
            self.path.write_bytes(b"")
            append_log(self.path, [{"settings": self.settings}])

    def append(self, rows: Sequence[Row]) -> None:
        """Keeps the rows of a batch, on the disk when this returns.

        Raises:
            OSError: they cannot be written.
        """
        append_log(self.path, rows)

    def remove(self) -> None:
        """Removes the files of all processes that can be seen from here."""
        for path in self.folder.glob(PARTS):
            path.unlink(missing_ok=True)

    def _check(self, first: Any, path: Path) -> None:
        """Refuses rows of other settings."""
        there = first.get("settings") if isinstance(first, dict) else None
        if not isinstance(there, dict):
            raise UserError(f"{path}: its first line is no settings of a run; remove the file to start anew")
        names = [name for name in {**self.settings, **there} if self.settings.get(name) != there.get(name)]
        if names:
            said = "; ".join(f"{n} was {_short(there.get(n))}, is {_short(self.settings.get(n))}" for n in names)
            raise UserError(
                f"{path.parent} holds an unfinished evaluation under other settings ({said}): finish it with those, "
                f"write elsewhere, or remove {PARTS} there"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"
