"""docs/reproduce.md: every published row has its numbers; each command makes its objects, in a folder of its own."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from pixelthink.callbacks.results_writer import ResultsWriter
from pixelthink.cli.main import PixelThinkCLI
from pixelthink.cli.registry import load_components
from tests.support import GOLDENS, ROOT

PAGE = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
PUBLISHED = json.loads((GOLDENS / "paper_efficiency.json").read_text(encoding="utf-8"))["rows"]
VARIABLES = dict(re.findall(r'^(?:export )?(\w+)="(.*)"$', PAGE, re.MULTILINE))
HERE = ["--trainer.accelerator=cpu", "--trainer.devices=1"]  # whatever it is for


def commands() -> list[str]:
    """The commands in the page's tables, their variables put in."""
    found = re.findall(r"`((?:\w+=\S+ )?python -m pixelthink [^`]+)`", PAGE)
    return sorted({re.sub(r"\$(\w+)", lambda name: VARIABLES[name[1]], command) for command in found})


def test_every_published_row_has_its_numbers_and_a_command() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.count("|") == 11]
    found = {(row[0], row[1]): row[2:] for row in rows}
    for row in PUBLISHED:
        *numbers, command = found[row["set"], row["method"]]
        names = ("tokens", "rscore", "rst", "giou_percent", "ciou_percent", "sat", "urss")
        assert [float(number) for number in numbers] == [row[name] for name in names]
        verb = "validate" if row["set"] == "val" else "test"
        assert re.match(rf"`PIXELTHINK_RESULTS=\S+ python -m pixelthink {verb} \$DIFF ", command)
    assert len(found) == len(PUBLISHED) + 2  # heading and rule


def test_no_two_commands_write_to_one_folder() -> None:
    """An evaluation replaces the finished results in its folder, and refuses unfinished ones of other settings."""
    evaluations = [command for command in commands() if "pixelthink fit " not in command]
    folders = [re.match(r"PIXELTHINK_RESULTS=(\S+) ", command) for command in evaluations]
    assert len(evaluations) == 12
    assert None not in folders, evaluations
    assert len({found[1] for found in folders if found}) == len(evaluations)


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_page_makes_its_objects(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    load_components()
    before, _, rest = command.partition("python -m pixelthink ")
    monkeypatch.delenv("PIXELTHINK_RESULTS", raising=False)
    for name, value in (setting.split("=") for setting in before.split()):
        monkeypatch.setenv(name, value)
    verb, *options = shlex.split(rest)
    cli = PixelThinkCLI(args=[*options, *HERE], run=False)
    source = {"fit": "train", "validate": "val", "test": "test"}[verb]
    assert cli.datamodule.sources[source] is not None
    paths = [option.partition("=")[2] for option in options if option.startswith("--model.policy.path=")]
    assert [cli.model.answerer.backbone.path] == paths or verb == "fit"
    writers = [callback for callback in cli.trainer.callbacks if isinstance(callback, ResultsWriter)]
    assert [f"PIXELTHINK_RESULTS={writer.folder.path} " for writer in writers] == [before][: verb != "fit"]
