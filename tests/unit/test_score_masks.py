"""`tools/score_masks.py` from its command line, and the JSONL helper under it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pixelthink.files.jsonl import read_rows, write_rows_atomically
from tests.support import ROOT, golden_rows

sys.path.insert(0, str(ROOT / "tools"))
import score_masks

ONE = {"size": [1, 4], "counts": [0, 2, 2]}
TWO = {"size": [1, 4], "counts": [1, 2, 1]}
TALL = {"size": [4, 1], "counts": [4]}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = score_masks.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("protocol", ["lisa", "segzero"])
def test_golden_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: str) -> None:
    for row in golden_rows("segmentation_metrics.jsonl.gz"):
        path = tmp_path / "in.jsonl"
        write_rows_atomically(path, ({"id": n} | item for n, item in enumerate(row["items"])))
        code, out, _ = run(capsys, "--protocol", protocol, "--input", path, "--bootstrap_samples", 200)
        result = json.loads(out)
        assert (code, result["protocol"], result["n"]) == (0, protocol, len(row["items"]))
        for name in ("giou", "ciou"):
            assert result[name] == pytest.approx(row["expected"][protocol][name], abs=1e-9)
            low, high = result[f"{name}_ci95"]
            assert low < result[name] < high


def test_by_hand_without_ignore(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = {"size": [1, 4], "counts": [4]}
    rows = [
        {"id": 1, "prediction": ONE, "target": TWO},
        {"id": "1", "prediction": empty, "target": empty, "ignore": None},
    ]
    path = lines(tmp_path / "in.jsonl", rows[0], "", rows[1])
    results = {p: json.loads(run(capsys, "--protocol", p, "--input", path)[1]) for p in ("lens", "segzero")}
    assert results["lens"]["giou"] == pytest.approx((1 / 3 + 1) / 2)
    assert results["segzero"]["giou"] == pytest.approx(1 / 6)
    assert results["lens"]["ciou"] == results["segzero"]["ciou"] == pytest.approx(1 / 3)


def test_failures_and_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = {"size": [1, 4], "counts": [4]}
    rows = [
        {"id": 1, "prediction": ONE, "target": TWO, "difficulty": 2.0},  # 1 of 3
        {"id": 2, "prediction": TWO, "target": TWO, "difficulty": 5.0},  # 2 of 2
        {"id": 3, "prediction": TWO, "target": TWO, "difficulty": 3.4, "failure": "no_json"},  # 0 of 2
        {"id": 4, "prediction": empty, "target": empty, "failure": "no_json"},  # 0, though both are empty
        {"id": 5, "prediction": None, "target": None, "failure": "image_missing"},
    ]
    path = lines(tmp_path / "in.jsonl", *rows)
    result = json.loads(run(capsys, "--protocol", "lens", "--input", path)[1])
    assert (result["n"], result["failures"]) == (5, {"no_json": 2, "image_missing": 1})
    assert result["giou"] == pytest.approx((1 / 3 + 1) / 5)
    assert result["ciou"] == pytest.approx(3 / 7)
    assert result["bootstrap"] == {"samples": 2000, "seed": 0}
    assert set(result["levels"]) == {"easy", "hard"}
    easy = result["levels"]["easy"]
    assert (easy["n"], easy["giou"], easy["ciou"]) == (2, pytest.approx(1 / 6), pytest.approx(1 / 5))
    assert easy["giou_ci95"] == [0.0, pytest.approx(1 / 3)]
    assert result["levels"]["hard"]["giou_ci95"] == [1.0, 1.0]


GOOD = {"id": "a", "prediction": ONE, "target": TWO}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GOOD, r"in.jsonl:2: id 'a' occurs already in row 1"),
        ({"id": "b", "prediction": TALL, "target": ONE}, "in.jsonl:2: prediction is 4×1 but target is 1×4"),
        ({"id": "b", "prediction": ONE, "target": ONE, "ignore": TALL}, "in.jsonl:2: ignore is 4×1"),
        ({"id": "b", "prediction": ONE}, "in.jsonl:2: no 'target'"),
        ({"prediction": ONE, "target": ONE}, "in.jsonl:2: no 'id'"),
        ({"id": "b", "prediction": ONE, "target": ONE, "failure": 3}, "in.jsonl:2: 'failure' must be the name"),
        ({"id": "b", "prediction": ONE, "target": ONE, "difficulty": 11}, "in.jsonl:2: the row: difficulty must be"),
        ({"id": "b", "prediction": None, "target": ONE}, "in.jsonl:2: no 'prediction'"),
        ({"id": "b", "prediction": {"size": [1, 4], "counts": [5]}, "target": ONE}, "in.jsonl:2: prediction: RLE runs"),
        ({"id": "b", "prediction": ONE, "target": {"size": [1, 4], "counts": "~~"}}, "in.jsonl:2: target: RLE"),
        ("{", "in.jsonl:2: not JSON"),
        ("[1]", "in.jsonl:2: expected a JSON object, found list"),
        ("[" * 100_000, "in.jsonl:2: not usable JSON"),
    ],
)
def test_bad_rows_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Any, message: str) -> None:
    path = lines(tmp_path / "in.jsonl", GOOD, row)
    code, out, err = run(capsys, "--protocol", "lens", "--input", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_bad_files_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path / "in.jsonl", GOOD)
    for arguments, message in (
        (("--protocol", "lens", "--input", tmp_path / "none.jsonl"), "No such file"),
        (("--protocol", "lens", "--input", lines(tmp_path / "empty.jsonl")), "empty.jsonl: no rows"),
        (("--protocol", "coco", "--input", path), "protocol"),
        (("--input", path), "protocol"),
        (("--protocol", "lens", "--input", path, "--bootstrap_samples", 0), "samples"),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert message in err


def test_as_a_program(tmp_path: Path) -> None:
    path = lines(tmp_path / "in.jsonl", GOOD)
    program = [sys.executable, str(ROOT / "tools" / "score_masks.py")]
    done = subprocess.run([*program, "--protocol", "lens", "--input", path], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["giou"] == pytest.approx(1 / 3)
    help_text = subprocess.run([*program, "--help"], capture_output=True, text=True, check=True).stdout
    for word in ("--protocol", "{lisa,segzero,lens}", "Ignored pixels", "--input", "--seed"):
        assert word in help_text


def test_jsonl_round_trip_and_gzip(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": "ü\u2028"}, {"b": [1, None]}]
    for name in ("x.jsonl", "x.jsonl.gz"):
        assert write_rows_atomically(tmp_path / "new" / name, rows) == 2
        assert list(read_rows(tmp_path / "new" / name)) == [(1, rows[0]), (2, rows[1])]
    with gzip.open(tmp_path / "new" / "x.jsonl.gz", "rt", encoding="utf-8") as file:
        assert len(file.read().split("\n")) == 3


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, name: str) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"a": 2}
        raise KeyboardInterrupt

    path = tmp_path / name
    write_rows_atomically(path, [{"a": 1}])
    with pytest.raises(KeyboardInterrupt):
        write_rows_atomically(path, rows())
    with pytest.raises(ValueError, match=rf"{name}:2: .*JSON compliant"):
        write_rows_atomically(path, [{"a": 2}, {"a": float("nan")}])
    assert list(read_rows(path)) == [(1, {"a": 1})]
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_unreadable_bytes_and_damaged_gzip(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:2: not UTF-8 text at byte 7"):
        list(read_rows(tmp_path / "x.jsonl"))
    (tmp_path / "y.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    with pytest.raises(ValueError, match=r"y\.gz: damaged gzip file"):
        list(read_rows(tmp_path / "y.gz"))
