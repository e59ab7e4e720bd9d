"""Imports run one way through the house, those under `if TYPE_CHECKING` too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "pixelthink"
FLOORS = (
    *("errors", "components", "timing", "geometry", "parsing", "failures", "types"),
    *("files", "parallel", "policies", "segmenters", "rollouts", "grpo", "answering", "rewards"),
    *("judges", "data", "metrics", "evaluation", "callbacks", "training"),
    *("cli", "planning", "api", "__main__"),
    "serving",
)
"""Rooms from the bottom up: each may import those before it."""


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of the package, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.startswith("pixelthink."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            if node.module == "pixelthink":
                yield from ((node.lineno, f"pixelthink.{alias.name}") for alias in node.names)
            elif node.module is not None and node.module.startswith("pixelthink."):
                yield node.lineno, node.module


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_the_house(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in FLOORS, f"{room} has no place yet: give it one in FLOORS"
    for line, module in imports_of(path):
        other = module.split(".")[1]
        assert other == room or FLOORS.index(other) < FLOORS.index(room), f"{path}:{line}: imports {module}"
