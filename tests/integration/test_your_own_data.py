"""The guide's commands, as they stand there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from pixelthink.cli import main as cli
from tests.photos import PHOTOS, needs_photos
from tests.support import ROOT
from tools import check_data, estimate_difficulty, prepare_data

GUIDE = ROOT / "docs/your_own_data.md"
TOOLS = {
    "tools/prepare_data.py": prepare_data.main,
    "tools/check_data.py": check_data.main,
    "tools/estimate_difficulty.py": estimate_difficulty.main,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


@needs_photos
def test_the_guide_from_its_first_command_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_photos").symlink_to(PHOTOS)
    (run,) = blocks("yaml")
    (tmp_path / "my_run.yaml").write_text(run)
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 5
    for command in commands:
        python, program, *arguments = shlex.split(command)
        assert python == "python"
        if program == "-m":
            assert arguments.pop(0) == "pixelthink"
            cli.main(arguments)
        else:
            assert TOOLS[program](arguments) == 0
    assert json.loads((tmp_path / "my_data/summary.json").read_text())["samples"] == 9
    assert (tmp_path / "my_data/contact_sheet.png").is_file()
    assert len(json.loads((tmp_path / "difficulty.json").read_text())) == 9
    assert "test/giou" in capsys.readouterr().out
