"""Default components: declared in signatures, made when needed."""

from __future__ import annotations

from typing import TypeVar, cast

Component = TypeVar("Component")


def resolved(component: Component) -> Component:
    """An ordinary object where `component` is a `jsonargparse.lazy_instance`, else `component` itself.

    A component-typed parameter has its default as `lazy_instance(Class)`, so that `--print_config` shows it and an
    override of one of its options keeps the others; its owner stores `resolved(parameter)`. For a lazy instance has no
    attributes before its first method call, bears another class name, and binds `__call__` to its *class*: a copy of
    it, or a second one of the same class in the same module, would call the first.
    """
    if not hasattr(component, "lazy_get_init_args"):
        return component
    component_type = type(component).__mro__[2]  # LazyInstance_X, jsonargparse's lazy base, X
    return cast("Component", component_type(**component.lazy_get_init_args().as_dict()))
