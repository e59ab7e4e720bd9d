"""The house stays easy to read: few rooms, short files, small classes and functions, no import of mocks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "pixelthink"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_TOP_LEVEL, MAX_FILE, MAX_METHODS, MAX_FUNCTION = 10, 400, 24, 60
WALKS = (
    ("data/collate.py", "training/grpo_module.py", "training/scorer.py", "grpo/loss.py", "training/learner.py"),
    ("data/collate.py", "answering/answerer.py", "answering/acceptance.py", "answering/segmenting.py"),
)
"""A sample's ways from YAML to the optimizer and from image to mask, as CONTRIBUTING names them."""


def test_the_top_level_is_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_TOP_LEVEL


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_classes_and_functions_are_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert sum(isinstance(child, functions) for child in node.body) <= MAX_METHODS, node.name
        if isinstance(node, functions):
            assert (node.end_lineno or 0) - node.lineno <= MAX_FUNCTION, node.name


def test_the_ways_of_a_sample_are_short_files_in_the_order_that_contributing_names() -> None:
    contributing, place = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), 0
    for walk in WALKS:
        assert len(walk) <= 6
        for name in walk:
            place = contributing.index(f"`pixelthink/{name}`", place + 1)
            assert len((PACKAGE / name).read_text(encoding="utf-8").splitlines()) <= 200, name


def test_no_module_of_another_inherits_behaviour() -> None:
    """The LightningModules hold their parts; their common base has annotations only."""
    interface = ast.parse((PACKAGE / "evaluation/interface.py").read_text(encoding="utf-8"))
    body = next(node for node in interface.body if isinstance(node, ast.ClassDef)).body
    assert all(isinstance(node, ast.AnnAssign | ast.Expr) for node in body)
    for path in (PACKAGE / "training").glob("*_module.py"):
        classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
        assert [ast.unparse(base) for node in classes for base in node.bases] == ["SegmentationModule"]


def test_an_engine_is_reachable_only_through_the_synced_one() -> None:
    """Outside `rollouts/`, nobody sets up an engine, and whoever calls `generate` calls a `SyncedEngine`'s."""
    for path in [*FILES, *(ROOT / "tools").glob("*.py")]:
        if path.is_relative_to(PACKAGE / "rollouts"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "generate":
                assert ast.unparse(node.func.value).rpartition(".")[2] == "engine", f"{path}:{node.lineno}"
            if isinstance(node, ast.Attribute) and node.attr in ("_engine", "_rollout"):
                assert path.name == "answerer.py", f"{path}:{node.lineno}"


def test_nothing_in_the_package_is_mocked() -> None:
    for path in FILES:
        assert "unittest" not in path.read_text(encoding="utf-8"), path
