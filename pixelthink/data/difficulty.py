"""Difficulties by id: the released file format, what to do with its faults, and success rates on the same scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from pixelthink.data.reading import read_json
from pixelthink.data.validation import MAX_DIFFICULTY, MIN_DIFFICULTY, check_difficulty
from pixelthink.errors import FileError, UserError

NAMED_IDS = 5

Entry = TypeVar("Entry")
OnFault = Literal["error", "drop", "fill"]


@dataclass(frozen=True)
class DifficultyFaults:
    """What to do with samples for which a difficulty file has no usable rating.

    A rating is not usable where it is null, no number, or outside 1 to 10. Where an id is rated twice, `error` refuses
    the file; the others take the last usable rating, as the released `convert_refcocog_to_verl.py` does.

    Attributes:
        on_fault: "error" refuses the file and names all its faults; "drop" leaves out the samples without a usable
            rating; "fill" gives them `fill_value`. The last two print what they met and how many samples it concerns.
        fill_value: Difficulty, 1 to 10, for "fill"; the default is the released one (`verl/utils/rl_dataset.py`).
    """

    on_fault: OnFault = "error"
    fill_value: float = 3.0

    def __post_init__(self) -> None:
        if self.on_fault not in ("error", "drop", "fill"):
            raise UserError(f"difficulty.on_fault must be error, drop or fill, got {self.on_fault!r}")
        check_difficulty(self.fill_value, "difficulty.fill_value")


@dataclass
class DifficultyTable:
    """What a difficulty file holds.

    Attributes:
        usable: Difficulty by id; the last one where an id has several.
        faults: Items that are not usable, or whose id came before: kind of fault → ids, or positions as `item 3`.
    """

    usable: dict[str, float] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)

    def add(self, position: int, item: object) -> None:
        """Takes in an item of the file."""
        if not isinstance(item, dict) or not {"image_id", "difficulty_score_model"} <= item.keys():
            self._fault("without image_id and difficulty_score_model", f"item {position}")
            return
        name, value = str(item["image_id"]), item["difficulty_score_model"]
        if name in self.usable:
            self._fault("with an id that came before", repr(name))
        try:
            self.usable[name] = check_difficulty(value, name)
        except UserError:
            self._fault(_fault_of(value), f"{name!r}" + ("" if value is None else f" ({str(value)[:20]})"))

    def _fault(self, kind: str, name: str) -> None:
        self.faults.setdefault(kind, []).append(name)

    def complaints(self) -> list[str]:
        """Count and first few ids of each kind of fault."""
        return [f"{len(names)} {kind}: {_listed(names)}" for kind, names in self.faults.items()]


def read_table(path: str | Path) -> DifficultyTable:
    """Ratings and faults of a JSON list of `{"image_id": …, "difficulty_score_model": …}`.

    Raises:
        FileError: the file cannot be read, or is no list; names it.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise FileError(f"{path}: expected a JSON list of difficulties")
    table = DifficultyTable()
    for position, row in enumerate(rows):
        table.add(position, row)
    return table


def read_difficulties(path: str | Path) -> dict[str, float]:
    """Difficulties, 1 to 10, by image id, see `read_table`.

    Raises:
        FileError: the file cannot be read or has a fault; one line that counts each kind and names the first few ids.
    """
    table = read_table(path)
    if table.faults:
        raise FileError(f"{path}: ratings that are not usable: {'; '.join(table.complaints())}")
    return table.usable


def difficulties_for(
    path: str | Path | None, ids: Iterable[str], faults: DifficultyFaults | None = None
) -> dict[str, float]:
    """Difficulty of the samples of a source, from a file in the released format; empty without a file.

    Args:
        path: The file.
        ids: The samples' ids.
        faults: What to do with samples without a usable rating. Those that "drop" leaves out have no entry.

    Raises:
        FileError: the file is damaged; under "error" also faults and missing ids, all of them in one line; under "drop"
            no sample is left.
        UserError: "drop" or "fill" without a file.
    """
    faults = faults or DifficultyFaults()
    if path is None:
        if faults.on_fault != "error":
            raise UserError(f"difficulty.on_fault is {faults.on_fault!r}, but there is no difficulty_file")
        return {}
    table, names = read_table(path), list(dict.fromkeys(ids))
    found = {name: lookup(table.usable, name) for name in names}
    missing = [name for name in names if found[name] is None]
    usable = {name: value for name, value in found.items() if value is not None}
    without = f"no difficulty for {len(missing)} of {len(names)} ids: {some(missing)}" if missing else ""
    complaint = "; ".join(filter(None, [*table.complaints(), without]))
    if not complaint:
        return usable
    if faults.on_fault == "error":
        raise FileError(f"{path}: {complaint}; mend the file, or set difficulty.on_fault to drop or fill")
    if faults.on_fault == "fill":
        rank_zero_info(f"{path}: {complaint}; {len(missing)} samples filled with {faults.fill_value:g}")
        return {name: usable.get(name, faults.fill_value) for name in names}
    if not usable:
        raise FileError(f"{path}: {complaint}; no sample is left")
    rank_zero_info(f"{path}: {complaint}; {len(missing)} samples dropped, {len(usable)} left")
    return usable


def for_all(ids: Iterable[str], table: Mapping[str, Entry], problem: str) -> dict[str, Entry]:
    """The entry of every id, see `lookup`.

    Raises:
        FileError: ids without an entry; begins with `problem`, counts them and names the first few.
    """
    found = {name: lookup(table, name) for name in ids}
    if missing := [name for name, entry in found.items() if entry is None]:
        raise FileError(f"{problem} for {len(missing)} of {len(found)} ids: {some(missing)}")
    return {name: entry for name, entry in found.items() if entry is not None}


def lookup(table: Mapping[str, Entry], name: str) -> Entry | None:
    """The entry of an id, else of what it belongs to (for `X#1#0` first `X#1`, then `X`), else None."""
    while name not in table and "#" in name:
        name = name.rpartition("#")[0]
    return table.get(name)


def some(names: Iterable[str]) -> str:
    """The first few names, quoted, and an ellipsis where there are more."""
    return _listed([repr(name) for name in names])


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts[:NAMED_IDS]) + (", …" if len(texts) > NAMED_IDS else "")


def _fault_of(value: object) -> str:
    """The kind of fault of a value that is not usable."""
    if value is None:
        return "null"
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return "not a number"
    return f"outside {MIN_DIFFICULTY:g} to {MAX_DIFFICULTY:g}"


def success_to_difficulty(success: Mapping[str, float]) -> dict[str, float]:
    """Difficulties from how often a policy succeeded, without any rater.

    A sample's difficulty is 10 − 9·q, where q in [0, 1] is the quantile of its success among all samples: the share of
    samples below it, and half of those that share its value. So the scale is relative: about 28 % of samples come out
    easy, 17 % medium and 55 % hard where no two succeed equally often.

    Args:
        success: Mean success by id, any finite number; more is easier.

    Returns:
        Difficulty in [1, 10] by id; equal success gives equal difficulty.

    Raises:
        UserError: a success that is not finite; names the id.
    """
    from scipy.stats import rankdata

    for name, value in success.items():
        if not np.isfinite(value):
            raise UserError(f"success of {name!r} is not a finite number: {value!r}")
    ranks = rankdata(list(success.values()))  # from 1; equal values have their mean rank
    quantile = (ranks - 0.5) / max(len(ranks), 1)
    difficulty = MAX_DIFFICULTY - (MAX_DIFFICULTY - MIN_DIFFICULTY) * quantile
    return dict(zip(success, difficulty.tolist(), strict=True))


def released_rows(difficulties: Mapping[str, float]) -> list[dict[str, object]]:
    """Difficulties as the released file lists them."""
    return [{"image_id": name, "difficulty_score_model": value} for name, value in difficulties.items()]
