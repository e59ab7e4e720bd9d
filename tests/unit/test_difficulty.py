"""Difficulty files with faults: all of them in one message, or dropped or filled where that was asked for."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pixelthink.cli.main import main
from pixelthink.data.base import SampleSource
from pixelthink.data.datamodule import PromptData
from pixelthink.data.difficulty import DifficultyFaults, read_difficulties
from pixelthink.data.prepare import PrepareOptions, prepare
from pixelthink.data.sources.checked import Checked
from pixelthink.data.sources.reasonseg_parquet import ReasonSegParquet
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.data.sources.training_rows import RefCOCOg840
from pixelthink.errors import FileError, UserError
from tests import published
from tests.support import tiny_run

LOGGER = "lightning.pytorch.utilities.rank_zero"
"""Where the counts are printed."""

ITEMS = [
    {"image_id": "r0", "difficulty_score_model": 7},
    {"image_id": "r1", "difficulty_score_model": None},
    {"image_id": "r2", "difficulty_score_model": 11},
    {"image_id": "r3", "difficulty_score_model": "hard"},
    {"image_id": "r4", "difficulty_score_model": 2.0},
    {"image_id": "r4", "difficulty_score_model": 4.5},
    {"image_id": "r9", "difficulty_score_model": True},
    {"difficulty_score_model": 5},
]
"""Every kind of fault; of r0 to r5, r0 and r4 have usable ratings, r4 two of them."""

COMPLAINT = (
    "1 null: 'r1'; 1 outside 1 to 10: 'r2' (11); 2 not a number: 'r3' (hard), 'r9' (True); 1 with an id that came "
    "before: 'r4'; 1 without image_id and difficulty_score_model: item 7; no difficulty for 4 of 6 ids: 'r1', 'r2', "
    "'r3', 'r5'"
)


@pytest.fixture
def ratings(tmp_path: Path) -> str:
    file = tmp_path / "ratings.json"
    file.write_text(json.dumps(ITEMS), encoding="utf-8")
    return str(file)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Six training rows, r0 to r5."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return published.training_rows(tmp_path / "rows", *[published.BOX_840] * 6)


def difficulties(source: SampleSource) -> dict[str, float | None]:
    source.setup()
    found = {source[index].id: source[index].difficulty for index in range(len(source))}
    assert list(found) == list(source.ids())
    return found


def test_all_faults_are_one_message(rows: str, ratings: str) -> None:
    with pytest.raises(FileError) as caught:
        RefCOCOg840(rows, difficulty_file=ratings).setup()
    assert str(caught.value) == f"{ratings}: {COMPLAINT}; mend the file, or set difficulty.on_fault to drop or fill"
    with pytest.raises(FileError, match=r"1 null: 'r1'; 1 outside 1 to 10: 'r2'"):
        read_difficulties(ratings)


def test_many_faults_are_counted_and_the_first_few_named(tmp_path: Path) -> None:
    file = tmp_path / "many.json"
    file.write_text(json.dumps([{"image_id": i, "difficulty_score_model": None} for i in range(2000)]))
    with pytest.raises(FileError) as caught:
        read_difficulties(file)
    assert str(caught.value) == f"{file}: ratings that are not usable: 2000 null: '0', '1', '2', '3', '4', …"


def test_drop_leaves_out_and_counts(rows: str, ratings: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        source = RefCOCOg840(rows, difficulty_file=ratings, difficulty=DifficultyFaults("drop"))
        assert difficulties(source) == {"r0": 7.0, "r4": 4.5}
    assert f"{ratings}: {COMPLAINT}; 4 samples dropped, 2 left" in caplog.messages


def test_fill_counts_and_fills(rows: str, ratings: str, caplog: pytest.LogCaptureFixture) -> None:
    filled = {"r0": 7.0, "r1": 3.0, "r2": 3.0, "r3": 3.0, "r4": 4.5, "r5": 3.0}
    with caplog.at_level(logging.INFO, LOGGER):
        assert difficulties(RefCOCOg840(rows, difficulty_file=ratings, difficulty=DifficultyFaults("fill"))) == filled
    assert f"{ratings}: {COMPLAINT}; 4 samples filled with 3" in caplog.messages
    other = RefCOCOg840(rows, difficulty_file=ratings, difficulty=DifficultyFaults("fill", 8.5))
    assert difficulties(other)["r5"] == 8.5


def test_the_checked_format_and_evaluation_tables_do_the_same(tmp_path: Path, rows: str, ratings: str) -> None:
    source = RefCOCOg840(rows)
    source.setup()
    prepare(source, tmp_path / "checked", PrepareOptions(rows_per_part=4))
    drop = Checked(str(tmp_path / "checked"), ratings, DifficultyFaults("drop"))
    assert difficulties(drop) == {"r0": 7.0, "r4": 4.5}
    fill = Checked(str(tmp_path / "checked"), ratings, DifficultyFaults("fill"))
    assert list(difficulties(fill).values()) == [7.0, 3.0, 3.0, 3.0, 4.5, 3.0]
    parquet = published.reasonseg_rows(tmp_path / "parquet")
    assert difficulties(ReasonSegParquet(parquet, "test", ratings, DifficultyFaults("fill"))) == {"img#1": 3.0}
    with pytest.raises(FileError, match="no sample is left"):
        ReasonSegParquet(parquet, "test", ratings, DifficultyFaults("drop")).setup()


def test_what_makes_no_sense_is_refused(rows: str) -> None:
    for options, message in (
        ({"on_fault": "ignore"}, "on_fault must be error, drop or fill, got 'ignore'"),
        ({"on_fault": "fill", "fill_value": 0.5}, "fill_value: difficulty must be a number from 1 to 10"),
    ):
        arguments: dict[str, Any] = options
        with pytest.raises(UserError, match=message):
            DifficultyFaults(**arguments)
    with pytest.raises(UserError, match="on_fault is 'fill', but there is no difficulty_file"):
        RefCOCOg840(rows, difficulty=DifficultyFaults("fill")).setup()


@pytest.mark.slow
def test_the_options_on_the_command_line(
    tmp_path: Path, ratings: str, tiny_policy_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A test on two of three samples: the third has no rating."""
    prepare(ShapeScenes(size=3), tmp_path / "data")
    listed = [{"image_id": f"shapes-train-0-{i}", "difficulty_score_model": 2 + i} for i in range(2)]
    Path(ratings).write_text(json.dumps(listed))
    source = f"{{class_path: Checked, init_args: {{path: {tmp_path / 'data'}, difficulty_file: {ratings}}}}}"
    run = [option for option in tiny_run(tmp_path, tiny_policy_path) if not option.startswith("--data.test")]
    with caplog.at_level(logging.INFO, LOGGER):
        main(["test", *run, f"--data.test={source}", "--data.test.difficulty.on_fault=drop"])
    dropped = "no difficulty for 1 of 3 ids: 'shapes-train-0-2'; 1 samples dropped, 2 left"
    assert f"{ratings}: {dropped}" in caplog.messages


def test_double_ids_stop_a_training_before_it_starts(tmp_path: Path, rows: str) -> None:
    rows_twice = published.write_parquet(
        tmp_path / "twice.parquet",
        [
            {"id": name, "problem": "q", "solution": published.BOX_840, "image": published.image_cell()}
            for name in ("a", "b", "a", "c", "b", "a")
        ],
    )
    source = RefCOCOg840(rows_twice)
    with pytest.raises(UserError, match=r"data\.train: 3 of 6 samples have the id of an earlier one: 'a', 'b'$"):
        PromptData(train=source).setup("fit")
    PromptData(train=RefCOCOg840(rows)).setup("fit")
    prepare(source, tmp_path / "checked")  # a conversion lists them instead
    rejected = (tmp_path / "checked" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in rejected] == [2, 4, 5]


@pytest.mark.parametrize("path", ["data/refCOCOg_9k_840", "./rows", "/nowhere/at/all", "~/rows", "rows.parquet"])
def test_a_path_that_is_not_there_is_no_hub_id(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        RefCOCOg840(path).setup()
    assert str(caught.value).startswith(f"{path}: there is no such file or folder; `python tools/get_data.py`")
    assert "\n" not in str(caught.value)
