"""Checkpoints of sharded training, as verl and EasyR1 write them, read without running what their pickles hold.

A checkpoint is a folder of `model_world_size_N_rank_R.pt`, R from 0 to N − 1. Each file is a state dict of DTensors,
ShardedTensors or plain tensors. A pickle may name tensors, containers, and a few classes of `torch.distributed`; the
latter become a `Record`, which holds what was stored and does nothing. So no process group is needed, and no code of
the pickle runs. What is put together: placements `Shard(dim)` and `Replicate()` on a mesh of any number of dimensions,
with equal, uneven, empty and padded shards.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pixelthink.errors import FileError, MissingFileError, UserError, brief

FILE = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")

RECORDED = frozenset(
    {
        *("DTensor", "DTensorSpec", "TensorMeta", "ShardOrderEntry", "Shard", "_StridedShard", "Replicate", "Partial"),
        *("DeviceMesh", "_MeshLayout", "_FlatLayout", "ShardedTensor", "ShardedTensorMetadata", "ShardMetadata"),
        *("TensorProperties", "MEM_FORMAT_ENCODING", "ChunkShardingSpec", "EnumerableShardingSpec", "_remote_device"),
    }
)
"""Classes of `torch.distributed` and its modules that a pickle may name; each becomes a `Record`."""


class RefusedError(pickle.UnpicklingError):
    """A pickle names something that might run code."""


class Record:
    """What a pickle stored of an object: the arguments it was made of, and its attributes or state. It does nothing."""

    kind = ""

    def __new__(cls, *arguments: Any) -> Record:
        made = super().__new__(cls)
        made.arguments = arguments
        made.state = None
        return made

    def __init__(self, *arguments: Any) -> None:
        self.arguments: tuple[Any, ...]
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        if all(part is None or isinstance(part, dict) for part in parts):
            for part in parts:
                vars(self).update(part or {})
        else:
            self.state = state

    def get(self, name: str) -> Any:
        """An attribute; ValueError where it was not stored."""
        if name not in vars(self):
            raise ValueError(f"{self.kind} without {name}")
        return vars(self)[name]


def _record_class(name: str) -> type[Record]:
    return type(name, (Record,), {"kind": name})


def _rebuild_wrapper(kind: type[Record], dtype: object, size: object, *rest: object) -> Record:
    """In place of `torch._utils._rebuild_wrapper_subclass`."""
    return kind(torch.Size(size))  # type: ignore[arg-type]


def _rebuild_subclass(make: Callable[..., Any], kind: object, arguments: tuple[Any, ...], state: Any) -> Any:
    """In place of `torch._tensor._rebuild_from_type_v2`."""
    made = make(*arguments)
    if isinstance(made, Record):
        made.__setstate__(state)
    return made


def _rebuild_parameter(data: Any, *rest: object) -> Any:
    """In place of `torch._utils._rebuild_parameter`."""
    return data


def _attribute(owner: object, name: str) -> type[Record]:
    """In place of `getattr`, by which ShardedTensor's pickles name a class inside it."""
    return _record_class(str(name))


_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch.serialization", "_get_layout"): lambda name: None,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_wrapper_subclass"): _rebuild_wrapper,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_subclass,
    ("builtins", "getattr"): _attribute,
    ("__builtin__", "getattr"): _attribute,
}


class _Unpickler(pickle.Unpickler):
    """Knows the names above and no others; torch adds the storages."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if module.startswith("torch.distributed.") and name in RECORDED:
            return _record_class(name)
        raise RefusedError(f"{module}.{name}"[:80])


def read_shard(path: Path) -> dict[str, Any]:
    """The state dict of one file; tensors stay on disk until they are used.

    Returns:
        Name → Tensor, or `Record` of a DTensor or ShardedTensor.

    Raises:
        FileError: the file is damaged, or its pickle names anything that is not admitted; one line.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            scripted = any(name.endswith("/constants.pkl") for name in archive.namelist())
        if scripted:
            raise RefusedError("a TorchScript program")
        reader = SimpleNamespace(Unpickler=_Unpickler, load=None, __name__=__name__)
        state = torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False, mmap=True)
    except RefusedError as error:
        raise FileError(
            f"{path}: refused: it asks for {error}, which is none of the classes of a sharded tensor"
        ) from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged file raises any exception
        raise FileError(f"{path}: damaged, or not written by torch.save: {brief(error)}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor | Record) for value in state.values()):
        raise FileError(f"{path}: no state dict of tensors")
    return state


@dataclass(frozen=True)
class _Piece:
    """A rank's part of a DTensor.

    Attributes:
        tensor: The local tensor.
        shape: Of the whole.
        placements: For each dimension of the mesh the tensor dimension that it splits; None where it replicates.
        sizes: Of the mesh.
        coordinate: Of the rank in the mesh.
    """

    tensor: Tensor
    shape: tuple[int, ...]
    placements: tuple[int | None, ...]
    sizes: tuple[int, ...]
    coordinate: tuple[int, ...]


class ShardedCheckpoint:
    """The weights of a folder of shards.

    Args:
        folder: Folder of `model_world_size_N_rank_R.pt`.

    Raises:
        MissingFileError: no such files, or ranks are missing; names them.
        FileError: a file cannot be used, a rank has several files or is not below N, or ranks hold different weights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = {match: path for path in sorted(folder.glob("*.pt")) if (match := FILE.fullmatch(path.name))}
        sizes = {int(match[1]) for match in files}
        if len(sizes) != 1:
            found = f"of world sizes {', '.join(map(str, sorted(sizes)))}" if sizes else "none"
            kind = FileError if sizes else MissingFileError
            raise kind(f"{folder}: expected model_world_size_N_rank_R.pt of one world size, found {found}")
        by_rank = {int(match[2]): path for match, path in files.items()}
        self.ranks = sizes.pop()
        if missing := [str(rank) for rank in range(self.ranks) if rank not in by_rank]:
            raise MissingFileError(f"{folder}: the files of ranks {', '.join(missing)} of {self.ranks} are missing")
        if extra := [path.name for match, path in files.items() if path != by_rank[int(match[2])]]:
            raise FileError(f"{folder}: {extra[0]} is a second file of its rank; move it away")
        if beyond := [path.name for rank, path in by_rank.items() if rank >= self.ranks]:
            raise FileError(f"{folder}: {beyond[0]} is beyond the last rank of {self.ranks}; move it away")
        self._states = [read_shard(by_rank[rank]) for rank in range(self.ranks)]
        for rank, state in enumerate(self._states):
            if different := sorted(state.keys() ^ self._states[0].keys()):
                raise FileError(f"{folder}: ranks 0 and {rank} hold different weights: {different[0]!r} is in one only")

    def __len__(self) -> int:
        return len(self._states[0])

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Name and whole tensor of each weight, one at a time.

        Raises:
            FileError: shards that do not fit together, a placement that is not known, or values that are not finite;
                names the weight.
        """
        for name in self._states[0]:
            try:
                whole = self._whole([state[name] for state in self._states])
                if wrong := count_not_finite(whole):
                    raise ValueError(f"{wrong} of {whole.numel()} values are not finite; take an earlier checkpoint")
            except UserError:
                raise
            except (ValueError, TypeError, AttributeError, LookupError) as error:
                raise FileError(f"{self.folder}: {name}: {brief(error)}") from None
            yield name, whole

    def _whole(self, parts: Sequence[Any]) -> Tensor:
        kinds = {part.kind if isinstance(part, Record) else "tensor" for part in parts}
        if len(kinds) > 1:
            raise ValueError(f"ranks hold different kinds: {', '.join(sorted(kinds))}")
        kind = kinds.pop()
        if kind == "tensor":
            return _same(parts)
        if kind == "DTensor":
            return _join([_piece(part, rank) for rank, part in enumerate(parts)])
        if kind == "ShardedTensor":
            return _fill(parts)
        raise ValueError(f"a {kind} is no weight")


def count_not_finite(tensor: Tensor) -> int:
    """How many values are NaN or infinite."""
    if not tensor.is_floating_point():
        return 0
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # of 8 bits, torch cannot tell
    return tensor.numel() - int(torch.isfinite(wide).sum())


def _same(tensors: Sequence[Tensor]) -> Tensor:
    """The one content of several replicas."""
    for other in tensors[1:]:
        if other.shape != tensors[0].shape or other.dtype != tensors[0].dtype or not _equal_bits(other, tensors[0]):
            raise ValueError("replicas differ")
    return tensors[0]


def _equal_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape and precision hold the same bits; a NaN equals itself."""
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def _piece(part: Record, rank: int) -> _Piece:
    spec = part.get("_spec")
    placements = []
    for placement in spec.get("placements"):
        if placement.kind not in ("Shard", "Replicate"):
            raise ValueError(f"placement {placement.kind} is not supported, only Shard and Replicate")
        placements.append(placement.get("dim") if placement.kind == "Shard" else None)
    for entry in vars(spec).get("shard_order") or ():
        if list(entry.arguments[1]) != sorted(entry.arguments[1]):
            raise ValueError(f"sharded in the order {entry.arguments[1]} of mesh dimensions, which is not supported")
    mesh = _mesh(spec.get("mesh"))
    if len(placements) != mesh.ndim:
        raise ValueError(f"{len(placements)} placements on a mesh of {mesh.ndim} dimensions")
    where = (mesh == rank).nonzero()
    if len(where) == 1:
        coordinate = tuple(int(place) for place in where[0])
    else:  # a slice of a larger mesh: ranks of equal coordinates are replicas
        coordinate = tuple(vars(spec.get("mesh")).get("_coordinate_on_dim") or ())
        if len(coordinate) != mesh.ndim:
            raise ValueError(f"rank {rank} is not in the mesh {mesh.tolist()}")
    shape = tuple(spec.get("tensor_meta").arguments[0])
    dims = tuple(dim if dim is None or dim >= 0 else dim + len(shape) for dim in placements)
    return _Piece(part.get("_local_tensor"), shape, dims, tuple(mesh.shape), coordinate)


def _mesh(mesh: Record) -> Tensor:
    """Ranks of a mesh by coordinate; torch has stored them in several ways."""
    stored = vars(mesh)
    ranks = stored.get("mesh", stored.get("_mesh"))
    if isinstance(ranks, Tensor):
        return ranks
    layout = vars(mesh.get("_layout"))
    axes = [vars(axis) for axis in layout["axes"]] if "axes" in layout else [layout]
    sizes = [size for axis in axes for size in _flat(axis["shape"])]
    strides = [stride for axis in axes for stride in _flat(axis["stride"])]
    return mesh.get("_rank_map").as_strided(sizes, strides)


def _flat(value: int | Sequence[int]) -> Sequence[int]:
    return (value,) if isinstance(value, int) else value


def _join(pieces: Sequence[_Piece]) -> Tensor:
    """The whole of a DTensor's pieces."""
    first = pieces[0]
    for piece in pieces[1:]:
        for what in ("shape", "placements", "sizes"):
            if getattr(piece, what) != getattr(first, what):
                raise ValueError(f"ranks disagree about its {what}: {getattr(first, what)} and {getattr(piece, what)}")
        if piece.tensor.dtype != first.tensor.dtype:
            raise ValueError(f"ranks disagree about its precision: {first.tensor.dtype} and {piece.tensor.dtype}")
    at: dict[tuple[int, ...], list[Tensor]] = {}
    for piece in pieces:
        at.setdefault(piece.coordinate, []).append(piece.tensor)
    if missing := [place for place in product(*map(range, first.sizes)) if place not in at]:
        raise ValueError(f"no rank at {missing[0]} of the mesh of {first.sizes}")
    return _join_from((), first.shape, first, {place: _same(tensors) for place, tensors in at.items()})


def _join_from(
    place: tuple[int, ...], shape: tuple[int, ...], like: _Piece, at: Mapping[tuple[int, ...], Tensor]
) -> Tensor:
    """The part, of shape `shape`, that the ranks with coordinates `(*place, …)` hold together."""
    level = len(place)
    if level == len(like.sizes):
        return _trimmed(at[place], shape, like)
    dim, ways = like.placements[level], like.sizes[level]
    if dim is None:
        return _same([_join_from((*place, way), shape, like, at) for way in range(ways)])
    if dim >= len(shape):
        raise ValueError(f"Shard({dim}) of a tensor of shape {like.shape}")
    step = math.ceil(shape[dim] / ways)  # as torch.chunk splits
    lengths = [max(0, min(step, shape[dim] - way * step)) for way in range(ways)]
    parts = [
        _join_from((*place, way), (*shape[:dim], length, *shape[dim + 1 :]), like, at)
        for way, length in enumerate(lengths)
    ]
    return torch.cat(parts, dim)


def _trimmed(tensor: Tensor, shape: tuple[int, ...], like: _Piece) -> Tensor:
    """A rank's tensor without padding, which only sharded dimensions may have."""
    if not math.prod(shape) and not tensor.numel():
        return tensor.reshape(shape)
    split = {dim for dim in like.placements if dim is not None}
    fits = tensor.ndim == len(shape) and all(
        there == wanted or (dim in split and wanted < there <= _longest(like, dim))
        for dim, (there, wanted) in enumerate(zip(tensor.shape, shape, strict=True))
    )
    if not fits:
        raise ValueError(f"a shard has shape {tuple(tensor.shape)}, its place has {shape} of {like.shape}")
    return tensor[tuple(slice(0, wanted) for wanted in shape)]


def _longest(like: _Piece, dim: int) -> int:
    """Length of the first rank's shard along a dimension, to which others may be padded."""
    length = like.shape[dim]
    for split, ways in zip(like.placements, like.sizes, strict=True):
        length = math.ceil(length / ways) if split == dim else length
    return length


def _fill(parts: Sequence[Record]) -> Tensor:
    """The whole of a ShardedTensor, from the offsets of its shards."""
    shapes = {tuple(part.state[1].get("size")) for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"ranks disagree about its shape: {' and '.join(map(str, sorted(shapes)))}")
    shape = shapes.pop()
    at: dict[tuple[int, ...], Tensor] = {}
    for shard in (shard for part in parts for shard in part.state[0]):
        start = tuple(shard.get("metadata").get("shard_offsets"))
        sizes = tuple(shard.get("metadata").get("shard_sizes"))
        tensor = shard.get("tensor")
        if any(there < size for there, size in zip(tensor.shape, sizes, strict=True)):
            raise ValueError(f"a shard has shape {tuple(tensor.shape)}, its place has {sizes} of {shape}")
        if any(s < 0 or s + size > whole for s, size, whole in zip(start, sizes, shape, strict=True)):
            raise ValueError(f"a shard of {sizes} at {start} is outside the shape {shape}")
        tensor = tensor[tuple(slice(0, size) for size in sizes)]
        at[start] = _same([at[start], tensor]) if start in at else tensor
    if not at:
        raise ValueError(f"the shards do not cover the shape {shape}")
    if len({tensor.dtype for tensor in at.values()}) > 1:
        raise ValueError("ranks disagree about its precision")
    whole = torch.empty(shape, dtype=next(iter(at.values())).dtype)
    covered = torch.zeros(shape, dtype=torch.bool)
    for start, tensor in at.items():
        region = tuple(slice(s, s + size) for s, size in zip(start, tensor.shape, strict=True))
        if covered[region].any():
            raise ValueError(f"the shard of {tuple(tensor.shape)} at {start} overlaps another")
        whole[region], covered[region] = tensor, True
    if not covered.all():
        raise ValueError(f"the shards do not cover the shape {shape}")
    return whole
