"""Reasoning segmentation with models that think only as long as a question needs.

The Python API, imported when it is used: `load_policy`, `load_segmenter`, `ask`, `evaluate`, `score_responses`.
See `docs/python.md`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixelthink.api import ask, evaluate, load_policy, load_segmenter, score_responses

__all__ = ["ask", "evaluate", "load_policy", "load_segmenter", "score_responses"]


def __getattr__(name: str) -> Any:
    """Imports the API, and torch with it, when one of its names is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'pixelthink' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module("pixelthink.api"), name)


def __dir__() -> list[str]:
    """The names of the API."""
    return list(__all__)
