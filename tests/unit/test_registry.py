"""The base class is the registry: what is found, what is refused, what the listing shows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pixelthink.cli.registry import KINDS, RegistryError, components, load_components
from tests.support import ROOT

TERM = """
from pixelthink.rewards.base import RewardTerm

class {name}(RewardTerm):
    def __call__(self, case):
        return 1.0
"""

Plugin = Callable[[str, str], None]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugin]:
    """Writes a module that PIXELTHINK_PLUGINS names; its classes are gone after the test."""
    written: list[str] = []

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        written.append(name)
        monkeypatch.setenv("PIXELTHINK_PLUGINS", ",".join(written))

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_every_kind_has_components() -> None:
    load_components()
    for kind in KINDS:
        assert components(kind), kind
    assert {"GRPOModule", "SFTModule"} <= components("module").keys()
    assert {"ReleasedBudget", "TokenBudget", "NoLengthScore"} <= components("length score").keys()


def test_a_plugin_is_found_by_its_short_name(plugin: Plugin) -> None:
    plugin("some_terms", TERM.format(name="AlwaysOne"))
    load_components()
    assert components("reward term")["AlwaysOne"].__module__ == "some_terms"


def test_private_and_abstract_classes_are_no_components(plugin: Plugin) -> None:
    abstract = "\nclass Half(RewardTerm):\n    pass\n"
    plugin("hidden_terms", TERM.format(name="_Hidden") + abstract)
    load_components()
    assert not {"_Hidden", "Half", "LazyInstance_BoxIoU"} & components("reward term").keys()


def test_two_components_of_one_name_are_refused(plugin: Plugin) -> None:
    plugin("more_terms", TERM.format(name="BoxIoU"))
    with pytest.raises(RegistryError) as refused:
        load_components()
    assert str(refused.value) == (
        "two components of kind 'reward term' share the name 'BoxIoU': "
        "more_terms.BoxIoU and pixelthink.rewards.localization.BoxIoU"
    )


@pytest.mark.parametrize(
    ("source", "reason"),
    [("import no_such_package\n", "No module named 'no_such_package'"), ("1 / 0\n", "division by zero")],
)
def test_a_broken_plugin_is_one_line(plugin: Plugin, source: str, reason: str) -> None:
    plugin("broken_terms", source)
    with pytest.raises(RegistryError) as refused:
        load_components()
    assert str(refused.value) == f"plugin 'broken_terms' (PIXELTHINK_PLUGINS) cannot be imported: {reason}"


def test_a_missing_plugin_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELTHINK_PLUGINS", "no_such_plugin")
    with pytest.raises(RegistryError, match=r"^plugin 'no_such_plugin' \(PIXELTHINK_PLUGINS\) cannot be imported"):
        load_components()


@pytest.mark.slow
def test_list_components_shows_every_kind_with_its_components_and_arguments() -> None:
    listed = subprocess.run(
        [sys.executable, "tools/list_components.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    headings = [line.split("  (")[0] for line in listed.splitlines() if line and not line.startswith(" ")]
    assert headings == list(KINDS)
    assert "  TokenBudget  A budget of `<think>` tokens" in listed
    assert "      easy_tokens: float = 32.0" in listed
