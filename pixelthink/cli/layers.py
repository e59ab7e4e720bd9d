"""Configs that build on others: `base: tiny.yaml` at the top of a YAML file, beside what it changes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from pixelthink.errors import MissingFileError, UserError


def with_bases(args: Sequence[str]) -> list[str]:
    """A command line in which each `--config FILE` comes after the files that it builds on.

    Args:
        args: Command line without the program's name.

    Raises:
        UserError: a file is missing, is no YAML mapping, or builds on itself; one line that names it.
    """
    expanded: list[str] = []
    rest = list(args)
    while rest:
        option = rest.pop(0)
        name, has_value, path = option.partition("=")
        if name not in ("--config", "-c") or (not has_value and not rest):
            expanded.append(option)
            continue
        for file in files_of(path if has_value else rest.pop(0)):
            expanded += ["--config", str(file)]
    return expanded


def files_of(path: str | Path, above: Sequence[Path] = ()) -> Iterator[Path]:
    """A config file, after all that it builds on; a base is looked for beside the file that names it.

    Raises:
        UserError: as for `with_bases`.
    """
    file = Path(path)
    if file.resolve() in above:
        raise UserError(f"--config: {file} builds on itself (base)")
    for base in bases_of(file):
        yield from files_of(file.parent / base, [*above, file.resolve()])
    yield file


def require_model(args: Sequence[str]) -> None:
    """Refuses a command line whose configs are layers only.

    Args:
        args: As `with_bases` returns them.

    Raises:
        UserError: no config names a class of model, nor does an option; one line that names the first config.
    """
    files = [Path(value) for option, value in pairwise(args) if option == "--config"]
    options = {option.split("=")[0] for option in args}
    asked = options & {"--model", "--model.class_path", "-h", "--help"}
    if files and not asked and not any(_names_a_model(read_yaml(file)) for file in files):
        run = f"--config configs/tiny.yaml --config {files[0]}"
        raise UserError(f"--config: {files[0]} is a layer, it names no model: put a run's config before it, e.g. {run}")


def _names_a_model(value: dict[str, Any]) -> bool:
    """Whether a config says which class the model is, at its top or under a subcommand."""
    models = [part.get("model") for part in (value, *value.values()) if isinstance(part, dict)]
    return any(isinstance(model, str) or (isinstance(model, dict) and "class_path" in model) for model in models)


def bases_of(file: Path) -> list[str]:
    """The names under a config file's key `base`."""
    value = read_yaml(file).get("base") or []
    return [value] if isinstance(value, str) else list(value)


def read_yaml(file: Path) -> dict[str, Any]:
    """A config file's contents, its interpolations as they stand.

    Raises:
        UserError: it is missing, is no YAML, or no mapping; one line.
    """
    if not file.is_file():
        raise MissingFileError(f"--config: there is no file {str(file)!r}")
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f"line {where.line + 1}: " if where is not None else ""
        problem = getattr(error, "problem", None) or "not a text file"
        hint = " (a tab: indent with spaces)" if "'\\t'" in problem else ""
        raise UserError(f"--config: {file}: {line}{problem}{hint}") from None
    if not isinstance(value, dict):
        raise UserError(f"--config: {file} holds no options")
    return value


def reward_of(path: str) -> str:
    """The reward of a layer or of a run's config, as JSON.

    Raises:
        UserError: the file cannot be read, or names none.
    """
    value = read_yaml(Path(path))
    model = value.get("model") or {}
    found = value.get("reward") or model.get("reward") or (model.get("init_args") or {}).get("reward")
    if found is None:
        raise UserError(f"--config: {path} has no model.reward; see configs/reward")
    return json.dumps({"reward": found})
