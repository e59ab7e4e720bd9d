"""jsonargparse's complaints, reduced to what a user needs: which option, what is wrong, what is known.

jsonargparse reports each alternative of a union with all it tried, and then the whole value. The texts are the only
thing it gives, so they are read here; one of a form that is not known comes out as it went in, on one line.
"""

from __future__ import annotations

import difflib
import inspect
import re
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pydoc import locate

import lightning as L
from jsonargparse import ArgumentParser, Namespace

from pixelthink.cli.registry import KINDS, components
from pixelthink.data.datamodule import PromptData
from pixelthink.errors import UserError
from pixelthink.evaluation.interface import SegmentationModule

_KEY = re.compile(r'Parser key "(?P<key>[^"]+)":(?P<rest>.*)')
_CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)':")
_UNKNOWN = re.compile(r"Expected a dot import path string: (?P<name>.*)")
_OPTION = re.compile(r"Option '(?P<name>[^']+)' is not accepted")
_GROUP_OPTION = re.compile(r"(?:Group|Subcommand) '(?P<group>[^']+)' does not accept option '(?P<name>[^']+)'")
_TYPE = re.compile(r"Expected a (?P<type>.+?)\.? Got value: (?P<value>.*)")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: (?P<names>.*)")
_STRUCTURED = re.compile(r"Parser key|Problem with given|Does not validate|does not accept option")
_NOISE = re.compile(
    r"Does not validate against any|Subtypes:|Errors:$|Given value type:|Expected a path but .* either not accessible|"
    r"Expected a <class 'NoneType'>"
)
_MAX_VALUE = 60

_TOP_LEVEL: dict[str, type] = {"data": PromptData, "trainer": L.Trainer, "model": SegmentationModule}
_TOP_LEVEL_KINDS = {"model": "module", "trainer.callbacks": "callback"}


def instantiate(parser: ArgumentParser, options: Namespace) -> Namespace:
    """The components that options name, made; what a constructor refuses is the user's to mend.

    Raises:
        UserError: a component cannot be made; one line.
    """
    with constructor_errors():
        return parser.instantiate(options)


@contextmanager
def constructor_errors() -> Iterator[None]:
    """Turns what constructors refuse into a `UserError`; jsonargparse wraps it in pages of its own."""
    try:
        yield
    except (ValueError, TypeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        raise cause or UserError(short_message(str(error))) from error


def short_message(text: str) -> str:
    """What a user needs of an error text; one line."""
    if found := _UNRECOGNIZED.match(text):
        return _unrecognized(found["names"].split())
    if not _STRUCTURED.search(text):
        return " ".join(text.split())
    keys: list[str] = []
    owner: str | None = None
    for line in text.split("Given value:")[0].splitlines():
        content = line.strip().removeprefix("- ").strip()
        if found := _KEY.match(content):
            keys += found["key"].split(".")
            content = found["rest"].strip()
        elif found := _CLASS.match(content):
            owner = found["path"]
            content = content[found.end() :].strip()
        if content and not _NOISE.match(content):
            reason, more = _reason(content, keys, owner)
            keys += more
            return f"--{'.'.join(keys)}: {reason}" if keys else reason
    return " ".join(text.split())


def _reason(content: str, keys: list[str], owner: str | None) -> tuple[str, list[str]]:
    """What is wrong, and what the option's name ends in beyond `keys`."""
    if found := _UNKNOWN.match(content):
        return _unknown_component(found["name"], keys, owner), []
    if found := _OPTION.match(content):
        known = _parameters(locate(owner)) if owner else []
        first = found["name"].split(".")[0]
        name = found["name"] if first in known else first
        return f"no such option{_guess(name, known)}{_list('known', known)}", [name]
    if found := _GROUP_OPTION.match(content):
        nested = [] if content.startswith("Subcommand") else [found["group"]]
        known = _parameters(_type_of(owner, found["group"])) if owner else []
        return f"no such option{_guess(found['name'], known)}{_list('known', known)}", [*nested, found["name"]]
    if found := _TYPE.match(content):
        value = found["value"] if len(found["value"]) <= _MAX_VALUE else found["value"][:_MAX_VALUE] + "…"
        return f"expected {_type_name(found['type'])}, got {value!r}", []
    if owner is not None and content.startswith("No module named"):
        return f"{owner}: {content}", []
    return content, []


def _unknown_component(name: str, keys: list[str], owner: str | None) -> str:
    kinds = list(_kinds_of(keys, owner))
    known = sorted({short for kind in kinds or KINDS for short in components(kind)})
    if len(kinds) != 1:
        return f"unknown component {name!r}{_guess(name, known)}"
    own = [short for short in known if not components(kinds[0])[short].__module__.startswith("lightning.")]
    return f"unknown {kinds[0]} {name!r}{_guess(name, known)}{_list(f'known {kinds[0]} components', own)}"


def _kinds_of(keys: list[str], owner: str | None) -> Iterator[str]:
    """Kinds of component that an option may hold."""
    if owner is None and ".".join(keys) in _TOP_LEVEL_KINDS:
        yield _TOP_LEVEL_KINDS[".".join(keys)]
        return
    annotation = _type_of(owner, keys[-1]) if owner and keys else _top_level_type(keys)
    for part in _flat(annotation):
        for kind, base in KINDS.items():
            if part is base:
                yield kind


def _top_level_type(keys: list[str]) -> object:
    owner = _TOP_LEVEL.get(keys[0]) if len(keys) == 2 else None
    return _hint(owner, keys[1]) if owner else None


def _unrecognized(names: list[str]) -> str:
    """Options that no part of the parser knows, with a guess for the first."""
    keys = names[0].split("=")[0].lstrip("-").split(".")
    owner = _TOP_LEVEL.get(keys[0]) if len(keys) == 2 else None
    return f"no such option: {' '.join(names)}{_guess(keys[-1], _parameters(owner))}"


def _type_of(owner: str | None, parameter: str) -> object:
    return _hint(locate(owner), parameter) if owner else None


def _hint(owner: object, parameter: str) -> object:
    try:
        return typing.get_type_hints(inspect.unwrap(owner.__init__)).get(parameter)  # type: ignore[misc]
    except (AttributeError, NameError, TypeError):
        return None


def _flat(annotation: object) -> Iterator[object]:
    """A type and all types it is made of."""
    yield annotation
    for part in typing.get_args(annotation):
        yield from _flat(part)


def _parameters(owner: object) -> list[str]:
    """Names that a class's constructor takes."""
    if not isinstance(owner, type):
        return []
    return [name for name in inspect.signature(owner).parameters if name != "self"]


def _guess(name: str, known: Iterable[str]) -> str:
    by_lower = {item.lower(): item for item in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f", did you mean {by_lower[close[0]]!r}?" if close else ""


def _list(label: str, names: Iterable[str]) -> str:
    text = ", ".join(names)
    return f" ({label}: {text})" if text else ""


def _type_name(text: str) -> str:
    if found := re.fullmatch(r"<class '(?:builtins\.)?([^']+)'>", text):
        return "a list in brackets, e.g. [840,840]" if found[1] == "tuple" else found[1]
    if found := re.fullmatch(r"typing\.Literal\[(.*)\]", text):
        return f"one of {found[1]}"
    return text
