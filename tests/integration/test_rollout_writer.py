"""Rollouts of a training on disk: scored again they give the rewards that were trained on; a resume writes the same."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from pixelthink.cli.main import main
from pixelthink.data.solution import parse_objects_solution, parse_solution, written_solution
from pixelthink.files.jsonl import read_rows
from pixelthink.geometry import Target
from tests.support import ROOT
from tools import score_rollouts


def test_solutions_are_written_as_they_are_read() -> None:
    target = Target((1.0, 2.25, 840.0, 4.123456789), ((3.0, 4.5), (1e-7, 6.0)))
    found = parse_solution(written_solution([target], "single"))
    assert found.box_xyxy == pytest.approx(target.box_xyxy, abs=1e-9)
    assert [*found.points_xy[0], *found.points_xy[1]] == pytest.approx([3.0, 4.5, 1e-7, 6.0], abs=1e-9)
    assert written_solution([Target((1.0, 2.0, 3.0, 4.0), ((1.0, 2.0), (3.0, 4.0)))], "single") == (
        "<box>(1,2),(3,4)</box><points>(1,2),(3,4)</points>"
    )
    several = (target, Target((5.0, 6.0, 7.0, 8.0), ((6.0, 7.0), (6.0, 7.0))))
    read = parse_objects_solution(written_solution(several, "visionreasoner"))
    assert [t.box_xyxy for t in read] == [t.box_xyxy for t in several]
    assert parse_objects_solution(written_solution((), "visionreasoner")) == ()


def fit(folder: Path, policy: Path, *options: str) -> None:
    saver = f"{{class_path: ModelCheckpoint, init_args: {{dirpath: {folder}/checkpoints, save_last: true}}}}"
    writer = f"{{class_path: RolloutWriter, init_args: {{path: {folder}/rollouts}}}}"
    main(
        [
            *("fit", f"--config={ROOT / 'configs/tiny.yaml'}", f"--model.policy.path={policy}", "--data.val=null"),
            *("--data.train.size=12", "--data.batch_size=4", "--model.sampling.group_size=3"),
            *("--model.sampling.max_new_tokens=30", "--trainer.val_check_interval=null", "--trainer.logger=false"),
            *("--trainer.enable_progress_bar=false", f"--trainer.callbacks=[{saver}, {writer}]", *options),
        ]
    )


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: gzip.decompress(path.read_bytes()) for path in sorted((folder / "rollouts").iterdir())}


@pytest.mark.slow
def test_written_rollouts_score_again_and_resume_alike(tmp_path: Path, capsys: Any) -> None:
    policy = ROOT / "assets/tiny_policy"
    fit(tmp_path / "straight", policy)
    names = [f"step-{step:06d}.rank-0.jsonl.gz" for step in (1, 2, 3)]
    straight = content(tmp_path / "straight")
    assert list(straight) == names
    fit(tmp_path / "parts", policy, "--trainer.max_steps=2")
    assert list(content(tmp_path / "parts")) == names[:2]
    fit(tmp_path / "parts", policy, "--ckpt_path=last")
    assert content(tmp_path / "parts") == straight
    for name in names:
        source, output = tmp_path / "straight/rollouts" / name, tmp_path / "scored.jsonl"
        options = ["--config", str(ROOT / "configs/tiny.yaml"), "--input", str(source), "--output", str(output)]
        assert score_rollouts.main(options) == 0
        written, scored = ([row for _, row in read_rows(path)] for path in (source, output))
        assert len(written) == len(scored) == 12
        for row, again in zip(written, scored, strict=True):
            assert {key: row[key] for key in again if key in row} == again
        assert {row["policy_version"] for row in written} == {written[0]["step"] - 1}  # of the weights that sampled
        for group in range(4):  # advantages of a group cancel out
            assert sum(row["advantage"] for row in written[3 * group : 3 * group + 3]) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.slow
def test_a_training_without_rollouts_is_told(tmp_path: Path, capsys: Any) -> None:
    writer = f"{{class_path: RolloutWriter, init_args: {{path: {tmp_path}/rollouts}}}}"
    with pytest.raises(SystemExit):
        main(
            [
                *(
                    "fit",
                    f"--config={ROOT / 'configs/tiny_sft.yaml'}",
                    "--trainer.max_steps=1",
                    "--trainer.logger=false",
                ),
                *("--data.val=null", "--trainer.val_check_interval=null", f"--trainer.callbacks=[{writer}]"),
            ]
        )
    assert "RolloutWriter: SFTModule trains on no rollouts; take the callback out" in capsys.readouterr().err
