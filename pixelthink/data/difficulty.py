"""Difficulties by id: the released file format, and success rates mapped to the same scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from pixelthink.data.reading import read_json
from pixelthink.data.validation import MAX_DIFFICULTY, MIN_DIFFICULTY, check_difficulty
from pixelthink.errors import FileError, UserError

NAMED_IDS = 5

Entry = TypeVar("Entry")


def read_difficulties(path: str | Path) -> dict[str, float]:
    """Difficulties, 1 to 10, by image id from a JSON list of `{"image_id": …, "difficulty_score_model": …}`.

    Raises:
        UserError: not such a list, an id twice, or a value outside 1…10; names the file, the id and the value.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise FileError(f"{path}: expected a JSON list of difficulties")
    difficulties: dict[str, float] = {}
    for position, row in enumerate(rows):
        if not isinstance(row, dict) or not {"image_id", "difficulty_score_model"} <= row.keys():
            raise FileError(f"{path}: item {position} needs image_id and difficulty_score_model")
        name = str(row["image_id"])
        if name in difficulties:
            raise FileError(f"{path}: image_id {name!r} occurs twice")
        difficulties[name] = check_difficulty(row["difficulty_score_model"], f"{path}: image_id {name!r}")
    return difficulties


def difficulties_for(path: str | Path | None, ids: Iterable[str]) -> dict[str, float]:
    """Difficulty of every sample id of a source, from a file in the released format; empty without a file.

    Raises:
        UserError: the file is damaged, or ids are missing; counts them and names the first few.
    """
    return {} if path is None else for_all(ids, read_difficulties(path), f"{path}: no difficulty")


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
    listed = list(names)
    return ", ".join(repr(name) for name in listed[:NAMED_IDS]) + (", …" if len(listed) > NAMED_IDS else "")


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
