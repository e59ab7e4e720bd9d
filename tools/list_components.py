"""Prints every swap point, its components and their arguments.

python tools/list_components.py
python tools/list_components.py --kind "length score"
"""

from __future__ import annotations

import inspect

from jsonargparse import CLI

from pixelthink.cli.registry import KINDS, components, load_components


def main(kind: str | None = None) -> None:
    """Lists components.

    Args:
        kind: Only this kind, e.g. "segmenter"; all kinds by default.
    """
    if kind is not None and kind not in KINDS:
        raise SystemExit(f"list_components: unknown kind {kind!r}; kinds: {', '.join(KINDS)}")
    load_components()
    for name in KINDS if kind is None else [kind]:
        base = KINDS[name]
        print(f"{name}  ({base.__module__}.{base.__name__})")
        for short, component in components(name).items():
            summary = (inspect.getdoc(component) or "").split("\n")[0]
            print(f"  {short}  {summary}")
            for parameter in inspect.signature(component).parameters.values():
                print(f"      {_describe(parameter)}")
        print()


def _describe(parameter: inspect.Parameter) -> str:
    default = "" if parameter.default is inspect.Parameter.empty else f" = {_shown(parameter.default)}"
    kind = "" if parameter.annotation is inspect.Parameter.empty else f": {parameter.annotation}"
    return f"{parameter.name}{kind}{default}"


def _shown(value: object) -> str:
    plain = isinstance(value, (int, float, str, bool, tuple, type(None)))
    text = repr(value) if plain else type(value).__name__.removeprefix("LazyInstance_")
    return text if len(text) <= 60 else text[:57] + "…"


if __name__ == "__main__":
    CLI(main, as_positional=False)
