"""Imports run one way through the house, and sibling packages do not know each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "pixelthink"
FLOORS = (
    {
        "atomic_files",
        "components",
        "jsonl",
        "checkpoint_io",
        "optim",
        "step_guard",
        "timing",
        "serving",
    },  # know nothing of the package
    {"types", "parallel", "chat"},
    {"geometry"},
    {"parsing"},
    {"failures"},
    {"data", "policies", "rollouts", "rewards", "grpo", "segmenters", "metrics", "judges", "training_stats"},
    {"answering", "lost_images"},
    {"results"},
    {"journal", "finished_run"},
    {"comparison"},
    {"report"},
    {"evaluation"},
    {"module", "sft", "evaluate", "mask_iou"},
    {"callbacks"},
    {"registry"},
    {"cli_messages"},
    {"cli"},
    {"memory"},
    {"__main__"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """`pixelthink.data.base` → `data`."""
    return module.split(".")[1]


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of the package that runs, i.e. does not stand under `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.startswith("pixelthink."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            if node.module == "pixelthink":
                yield from ((node.lineno, f"pixelthink.{alias.name}") for alias in node.names)
            elif node.module is not None and node.module.startswith("pixelthink."):
                yield node.lineno, node.module
        waiting += ast.iter_child_nodes(node)


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_the_house(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in FLOOR_OF, f"{room} has no place yet: give it one in FLOORS"
    for line, module in imports_of(path):
        other = room_of(module)
        assert other == room or FLOOR_OF[other] < FLOOR_OF[room], f"{path}:{line}: {room} must not import {module}"


def test_type_checking_imports_are_not_counted(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from pixelthink.cli import main\n"
        "def f():\n    import pixelthink.geometry\n",
        encoding="utf-8",
    )
    assert list(imports_of(source)) == [(5, "pixelthink.geometry")]
