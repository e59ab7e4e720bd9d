"""The re-scoring tool through its command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import GOLDENS, ROOT, golden_rows
from tools.score_rollouts import main

CONFIGS = ROOT / "configs" / "reward"
ROW: dict[str, Any] = {
    "id": "r1",
    "response": '<think>a</think><answer>{"bbox": [1, 2, 30, 40], "points_1": [5, 5], "points_2": [9, 9]}</answer>',
    "solution": "<box>(1,2),(30,40)</box><points>(5,5),(9,9)</points>",
    "difficulty": 6.0,
    "uncertainty": 0.5,
    "reasoning_token_count": 500,
}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def score(tmp_path: Path, rows: list[Any], *options: str, config: str = "pixelthink") -> tuple[int, Path]:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    where = ["--config", str(CONFIGS / f"{config}.yaml"), "--input", str(source), "--output", str(output)]
    return main([*where, *options]), output


@pytest.mark.parametrize("kind", ["pixelthink", "visionreasoner"])
def test_scores_the_golden_files(kind: str, tmp_path: Path) -> None:
    source, output = GOLDENS / f"{kind}_reward.jsonl.gz", tmp_path / "out.jsonl"
    assert main(["--config", str(CONFIGS / f"{kind}.yaml"), "--input", str(source), "--output", str(output)]) == 0
    scored = rows_of(output)
    golden = golden_rows(source.name)
    assert [row["id"] for row in scored] == [row["id"] for row in golden]
    for found, row in zip(scored, golden, strict=True):
        flat = {**found["parts"], **found}
        assert {k: flat[k] for k in row["expected"] if k in flat} == {
            k: v for k, v in row["expected"].items() if k not in ("words", "reasoning")
        }


@pytest.mark.parametrize(
    "config", sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "visionreasoner")
)
def test_every_single_object_configuration_scores(config: str, tmp_path: Path) -> None:
    asked = 600 if config == "l1_exact" else -600  # at most 600
    code, output = score(tmp_path, [ROW | {"response_token_count": 510, "token_target": asked}], config=config)
    assert code == 0
    assert set(rows_of(output)[0]) == {"id", "parts", "length_used", "length_budget", "length_score", "reward"}


def test_l1_reads_the_row_s_target(tmp_path: Path) -> None:
    """As L1's rows: a negative target is the most that is wanted."""
    rows = [ROW | {"response_token_count": 510, "token_target": target} for target in (600, -600)]
    _, output = score(tmp_path, rows, config="l1_max")
    exact, at_most = rows_of(output)
    assert exact["reward"] == pytest.approx(1 - 0.0003 * 90)
    assert at_most["reward"] == pytest.approx((1 + 0.0003 * 90) / 2)
    assert (at_most["length_used"], at_most["length_budget"]) == (510, 600)


def test_a_row_chooses_how_length_is_counted(tmp_path: Path) -> None:
    modes: list[dict[str, Any]] = [
        {},
        {"length_mode": "response_words"},
        {"length_mode": "reasoning_tokens"},
        {"length_mode": None},
    ]
    rows = [{**ROW, **mode} for mode in modes]
    _, output = score(tmp_path, rows)
    assert [row["length_used"] for row in rows_of(output)] == [11, 11, 500, 11]
    _, output = score(tmp_path, rows, "--reward.length.length_mode=reasoning_tokens")
    assert [row["length_used"] for row in rows_of(output)] == [500, 11, 500, 500]


def test_options_override_the_configuration(tmp_path: Path) -> None:
    code, output = score(tmp_path, [ROW], "--reward.length=TokenBudget", "--reward.length.hard_tokens=600")
    assert code == 0
    assert rows_of(output)[0]["length_budget"] == 612.5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ({**ROW, "response": None}, "no 'response'"),
        ({**ROW, "response": 7}, "response must be a text"),
        ({**ROW, "solution": "x"}, "solution is not"),
        ({**ROW, "difficulty": None}, "sample r1: no difficulty"),
        ({**ROW, "difficulty": 42}, "sample r1: difficulty must lie in [1, 10], got 42"),
        ({**ROW, "difficulty": "hard"}, "difficulty must be a number"),
        ({**ROW, "uncertainty": None}, "sample r1: no uncertainty"),
        ({**ROW, "uncertainty": float("nan")}, "uncertainty must be finite"),
        ({**ROW, "reasoning_token_count": 1.5}, "whole number"),
        ({**ROW, "length_mode": "letters"}, "unknown length_mode 'letters'"),
        ({**ROW, "length_mode": []}, "length_mode must be a text"),
        ({**ROW, "length_mode": "reasoning_tokens", "reasoning_token_count": None}, "no count of reasoning tokens"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(
    row: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.jsonl").write_text("before")
    code, output = score(tmp_path, [ROW, row])
    error = capsys.readouterr().err
    assert code == 2
    assert f"{tmp_path}/in.jsonl:2: " in error
    assert message in error
    assert error.count("\n") == 1
    assert output.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--reward.length=TokenBuget", "reward.length: unknown component 'TokenBuget'; did you mean TokenBudget?"),
        ("--reward=Nope", "reward: unknown component 'Nope'"),
        ("--reward.length.slop=3", "'slop' is not accepted"),
        ("--reward.length.slope=x", "reward.length.slope: "),
        ("--reward.length.slope=-3", "slope must be positive, got -3.0"),
        ("--reward.iou.threshold=-1", "threshold must be a finite number"),
        ("--input=/does/not/exist.jsonl", "/does/not/exist.jsonl"),
        ("--output=/dev/null/out.jsonl", "/dev/null"),
    ],
)
def test_a_bad_option_is_one_clear_line(
    option: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = score(tmp_path, [ROW], option)
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_runs_as_a_program(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, str(ROOT / "tools" / "score_rollouts.py")]
    help_text = subprocess.run([*program, "--help"], capture_output=True, text=True, env=environment, check=True).stdout
    for option in ("--config", "--reward", "--input", "--output"):
        assert option in help_text
    failed = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
