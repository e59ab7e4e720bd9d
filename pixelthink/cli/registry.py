"""Swap points. A kind is an abstract class, a component any public subclass of it that has been imported.

So there is nothing to register: `load_components` imports the package's own components and the plugins, after which
jsonargparse finds each by its short class name. Plugins are modules named by the entry-point group
`pixelthink.plugins` or, comma-separated, by the environment variable `PIXELTHINK_PLUGINS`; a component elsewhere is
reached by its full dotted path without either.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from importlib.metadata import entry_points
from pathlib import Path

from lightning.pytorch.callbacks import Callback

import pixelthink
from pixelthink.data.base import SampleSource
from pixelthink.data.prompts import PromptStyle
from pixelthink.errors import UserError
from pixelthink.evaluation.interface import SegmentationModule
from pixelthink.judges.base import Judge
from pixelthink.policies.base import PolicyBackbone
from pixelthink.policies.reference import Reference
from pixelthink.rewards.base import LengthScore, Reward, RewardTerm
from pixelthink.rollouts.base import RolloutEngine
from pixelthink.segmenters.base import Segmenter

PLUGIN_GROUP = "pixelthink.plugins"
PLUGIN_VARIABLE = "PIXELTHINK_PLUGINS"
NO_COMPONENTS = "pixelthink.serving."
"""A program of its own, whose modules need packages that come with vLLM."""

KINDS: dict[str, type] = {
    "module": SegmentationModule,
    "policy": PolicyBackbone,
    "reference": Reference,
    "rollout engine": RolloutEngine,
    "reward": Reward,
    "reward term": RewardTerm,
    "length score": LengthScore,
    "segmenter": Segmenter,
    "judge": Judge,
    "sample source": SampleSource,
    "prompt style": PromptStyle,
    "callback": Callback,
}


class RegistryError(UserError):
    """A plugin that cannot be imported, or a short name that two components share."""


def load_components() -> None:
    """Imports all components of the package and all plugins.

    Raises:
        RegistryError: one line; names the plugin or the name that two components share.
    """
    folder = [str(Path(pixelthink.__file__).parent)]
    for module in pkgutil.walk_packages(folder, "pixelthink."):
        if not module.name.endswith("__main__") and not module.name.startswith(NO_COMPONENTS):
            importlib.import_module(module.name)
    for name, origin in _plugins():
        _import_plugin(name, origin)
    for kind in KINDS:
        components(kind)


def components(kind: str) -> dict[str, type]:
    """Short name → class of every component of a kind that has been imported, sorted by name.

    Raises:
        RegistryError: if two components of the kind share a short name.
    """
    found: dict[str, type] = {}
    for component in _public_subclasses(KINDS[kind]):
        other = found.setdefault(component.__name__, component)
        if other is not component:
            names = " and ".join(sorted(f"{c.__module__}.{c.__name__}" for c in (other, component)))
            raise RegistryError(f"two components of kind {kind!r} share the name {component.__name__!r}: {names}")
    return dict(sorted(found.items()))


def _public_subclasses(base: type) -> list[type]:
    """Concrete public subclasses that can be reached by their dotted path, without doubles."""
    found: dict[str, type] = {}
    subclass: type
    for subclass in base.__subclasses__():
        if _is_public(subclass) and not inspect.isabstract(subclass):
            found[f"{subclass.__module__}.{subclass.__name__}"] = subclass
        for deeper in _public_subclasses(subclass):
            found[f"{deeper.__module__}.{deeper.__name__}"] = deeper
    return list(found.values())


def _is_public(component: type) -> bool:
    """Whether YAML can name it: found under its own dotted path, not private, no default made by `lazy_instance`."""
    named = getattr(sys.modules.get(component.__module__), component.__name__, None) is component
    return named and not component.__name__.startswith(("_", "LazyInstance_"))


def _plugins() -> list[tuple[str, str]]:
    """(module, where it is named) of every plugin."""
    named = [(point.value, f"entry point {point.name!r}") for point in entry_points(group=PLUGIN_GROUP)]
    listed = [name.strip() for name in os.environ.get(PLUGIN_VARIABLE, "").split(",")]
    return named + [(name, PLUGIN_VARIABLE) for name in listed if name]


def _import_plugin(name: str, origin: str) -> None:
    if (working_directory := str(Path.cwd())) not in sys.path:
        sys.path.append(working_directory)
    try:
        importlib.import_module(name)
    except Exception as error:
        raise RegistryError(f"plugin {name!r} ({origin}) cannot be imported: {error}") from error
