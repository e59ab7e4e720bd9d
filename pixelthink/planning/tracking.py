"""Counts the bytes that a computation holds, and carries computations out without holding any.

`ShapesOnly` computes with shapes: floating-point tensors are fakes (meta tensors that know the device they stand for),
while integers, by which models decide what to compute, are real. `Ledger` watches the tensors that operators return,
fake or real, and keeps the sum of those that still live, by what they are for.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.ops.prim.device.default
OTHER = "activations"
REAL = ("aten.arange", "aten.linspace", "aten.randint", "aten.randperm")
"""Operators without tensor arguments whose results have values under `ShapesOnly`."""
FRAMES = 60
"""How far up the call stack a tensor's purpose is looked for."""


class ShapesOnly(FakeTensorMode):
    """A mode in which floating-point tensors have shapes but no values, and integers have both.

    Ranges are real as well, since positions are made from them. A computation that asks a floating-point tensor for a
    value fails here, as it must. There is one device only, and `Module.to` leaves a module where it is: torch's own
    cannot move parameters without values.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._module_to = nn.Module.to
        self._entered = 0  # torch enters the mode again while it is entered

    def __enter__(self) -> Self:
        nn.Module.to = lambda module, *target, **options: module  # type: ignore[assignment]
        self._entered += 1
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._entered -= 1
        if not self._entered:
            nn.Module.to = self._module_to  # type: ignore[method-assign]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is DEVICE and isinstance(args[0], FakeTensor):  # asked for so often that it would take half of the time
            return args[0].fake_device
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return super().__torch_dispatch__(func, types, *_without_masks(func, args), kwargs)
        if tensors or not _makes_fakes(func, args, kwargs):
            return func(*args, **kwargs)
        return super().__torch_dispatch__(func, types, args, kwargs)


def _makes_fakes(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator without tensors among its arguments makes a floating-point tensor that is no range."""
    if str(func).startswith(REAL):
        return False
    dtype = kwargs.get("dtype")
    if dtype is None:
        return not (str(func).startswith("aten.full") and isinstance(args[1], int))  # bool is an int
    return bool(dtype.is_floating_point)


def _without_masks(func: Any, args: Any) -> tuple[Any]:
    """The arguments, as a 1-tuple; real boolean masks that index a fake tensor are replaced by the places they name."""
    if not str(func).startswith(("aten.index.", "aten.index_put")):
        return (args,)
    places: list[Any] = []
    for index in args[1]:
        if isinstance(index, Tensor) and not isinstance(index, FakeTensor) and index.dtype == torch.bool:
            places += list(index.nonzero(as_tuple=True))
        else:
            places.append(index)
    return ((args[0], places, *args[2:]),)


class Ledger(TorchDispatchMode):
    """Bytes of the live tensors that were made while it was entered, by purpose, and their peak.

    Enter it after `ShapesOnly`, so that it sees every operator first.

    Args:
        files: Purpose of what is allocated on behalf of a source file, by the end of the file's path; anything else
            counts as "activations" until `label` says otherwise.

    Attributes:
        live: Bytes held now, by purpose.
        peak: The same at the moment when the sum was largest since `watch` began.
        most: The most that each purpose had, at whatever moment.
    """

    def __init__(self, files: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.files = dict(files or {})
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._purpose: dict[int, list[Any]] = {}  # storage → [purpose, bytes, weak reference]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._enter(result)
            return result
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._enter(leaf)
        return result

    def label(self, tensors: Iterable[Tensor], purpose: str) -> None:
        """Says what tensors are for, whether they were seen before or not."""
        for tensor in tensors:
            self._enter(tensor)
            entry = self._purpose[tensor.untyped_storage()._cdata]
            self.live[entry[0]] -= entry[1]
            entry[0] = purpose
            self._add(purpose, entry[1])

    @contextmanager
    def watch(self) -> Iterator[Callable[[], Counter[str]]]:
        """Begins a new peak; gives a function that returns it."""
        self.peak = Counter(self.live)
        yield lambda: self.peak

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._purpose or not storage.nbytes():
            return
        entry: list[Any] = [self._caller(), storage.nbytes(), None]
        entry[2] = weakref.ref(storage, lambda _: self._leave(key, entry))
        self._purpose[key] = entry
        self._add(entry[0], entry[1])
        if self.live.total() > self.peak.total():
            self.peak = Counter(self.live)

    def _add(self, purpose: str, count: int) -> None:
        self.live[purpose] += count
        self.most[purpose] = max(self.most[purpose], self.live[purpose])

    def _leave(self, key: int, entry: list[Any]) -> None:
        self.live[entry[0]] -= entry[1]
        if self._purpose.get(key) is entry:
            del self._purpose[key]

    def _caller(self) -> str:
        """The purpose of the innermost of the named files on the call stack."""
        frame = sys._getframe(2)
        for _ in range(FRAMES):
            for end, purpose in self.files.items():
                if frame.f_code.co_filename.endswith(end):
                    return purpose
            if frame.f_back is None:
                break
            frame = frame.f_back
        return OTHER
