"""Difficulty from the policy's own success."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pixelthink.data.difficulty import read_difficulties
from pixelthink.geometry import Target
from pixelthink.parsing import format_response, parse_completion
from tools import estimate_difficulty

TARGET = Target((10, 10, 29, 29), ((15, 15), (20, 20)))
OTHER = Target((60, 10, 79, 29), ((65, 15), (70, 20)))
RUN = """
model:
  class_path: GRPOModule
  init_args:
    policy:
      class_path: FreshTinyQwen25VL
      init_args: {hidden_size: 32, layers: 1, heads: 2, intermediate_size: 32, vision_hidden_size: 32, vision_layers: 1}
    sampling: {group_size: 8, max_new_tokens: 6}
data:
  train: {class_path: ShapeScenes, init_args: {size: 3}}
  prompt: ShortPrompt
  image_size: [112, 112]
trainer: {accelerator: cpu}
"""


def objects(*targets: Target) -> str:
    listed = [{"bbox_2d": list(t.box_xyxy), "point_2d": list(t.points_xy[0])} for t in targets]
    return f"<think>x</think><answer>{json.dumps(listed)}</answer>"


@pytest.mark.parametrize(
    ("text", "targets", "expected"),
    [
        (format_response("x", TARGET), (TARGET,), 1.0),
        (format_response("x", OTHER), (TARGET,), 0.0),
        ("no idea", (TARGET,), 0.0),
        ("no idea", (), 0.0),
    ],
)
def test_success_of_a_single_answer(text: str, targets: tuple[Target, ...], expected: float) -> None:
    assert estimate_difficulty.success(parse_completion(text), targets, 0.5) == expected


@pytest.mark.parametrize(
    ("answered", "targets", "expected"),
    [
        ((TARGET, OTHER), (OTHER, TARGET), 1.0),
        ((TARGET,), (OTHER, TARGET), 0.5),
        ((TARGET, TARGET), (OTHER, TARGET), 0.5),
        ((TARGET, OTHER), (TARGET,), 0.5),
        ((), (), 1.0),
        ((TARGET,), (), 0.0),
        ((), (TARGET,), 0.0),
    ],
)
def test_success_of_several_objects(answered: tuple[Target, ...], targets: tuple[Target, ...], expected: float) -> None:
    answer = parse_completion(objects(*answered), "visionreasoner")
    assert estimate_difficulty.success(answer, targets, 0.5) == expected


def test_a_policy_rates_its_own_questions_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    output = tmp_path / "difficulty.json"
    arguments = [f"--run={tmp_path / 'run.yaml'}", f"--output={output}", "--rollouts=2", "--batch_size=1"]
    assert estimate_difficulty.main(arguments) == 0
    assert read_difficulties(output) == {f"shapes-train-0-{i}": 5.5 for i in range(3)}
    log = Path(f"{output}.rollouts.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows[0]["success"] = 1.0
    log.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]) + '{"torn')
    assert estimate_difficulty.main(arguments) == 0
    assert read_difficulties(output) == {"shapes-train-0-0": 2.5, "shapes-train-0-1": 7.0, "shapes-train-0-2": 7.0}
    assert len(log.read_text().splitlines()) == 3
    assert estimate_difficulty.main([*arguments, "--split=val"]) == 2
    assert "data.val is not set" in capsys.readouterr().err
