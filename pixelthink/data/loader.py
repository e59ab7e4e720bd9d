"""A dataloader with an order that depends on seed and epoch alone, and with its position in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import chain, pairwise
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from pixelthink.data.base import SampleSource
from pixelthink.data.evaluation_dataset import EvaluationDataset
from pixelthink.errors import UserError
from pixelthink.types import PromptBatch


@dataclass(eq=False)
class EpochSampler(Sampler[list[int]]):
    """Batches of indices for one process; restartable in the middle of an epoch.

    Every process draws the same permutation, cuts it into the same batches and takes every `world_size`-th sample of
    each, so the processes together see the batches that one process would have seen. In training the incomplete last
    batch is left out; in evaluation nothing is, and no index is repeated.

    Attributes:
        length: Number of samples.
        batch_size: Samples per batch over all processes.
        seed: Seed of the order. The first epoch's is that of torch's `RandomSampler` with a generator of this seed, so
            that a released recipe's seed gives its order (`verl/trainer/ray_trainer.py`).
        shuffle: Draw a new order every epoch, or keep the source's.
        drop_last: Leave the incomplete last batch out.
        rank: This process.
        world_size: Number of processes.
        epoch: Number of the epoch, part of the order's seed.
        first_batch: Where the next iteration begins.

    Raises:
        UserError: the batch size does not divide among the processes, or training has not one full batch.
    """

    length: int
    batch_size: int
    _: KW_ONLY
    seed: int = 0
    shuffle: bool = False
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1
    epoch: int = field(default=0, init=False)
    first_batch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        size, processes = self.batch_size, self.world_size
        if size % processes:
            fix = f"set data.batch_size and data.eval_batch_size to multiples of {processes}"
            raise UserError(f"a batch of {size} prompts does not divide among {processes} processes: {fix}")
        if self.drop_last and self.length < size:
            fix = f"set data.batch_size to at most {self.length}, or give data.train more samples"
            raise UserError(f"data.train has {self.length} samples, which do not fill one batch of {size}: {fix}")

    def __len__(self) -> int:
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    @property
    def sampler(self) -> EpochSampler:
        """Where Lightning looks for `set_epoch`: the sampler of a batch sampler, which is this one."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.length))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch * 1_000_003)
            order = torch.randperm(self.length, generator=generator).tolist()
        first, self.first_batch = self.first_batch, 0
        for index in range(first, len(self)):
            batch = order[index * self.batch_size : (index + 1) * self.batch_size]
            if mine := batch[self.rank :: self.world_size]:
                yield mine


class ResumableLoader:
    """Batches over an `EpochSampler`, with a position that Lightning saves and restores between two batches.

    It wraps a `DataLoader`: Lightning would take one apart to predict, and build it anew with a sampler of its own. The
    position of torchdata's `StatefulDataLoader` would be that of the look-ahead, one batch too far.

    Args:
        source: Samples.
        sampler: Which of them make a batch.
        look_ahead: Give each batch the next one as its `upcoming`; the position does not count it.
        options: Further options of the `DataLoader`.
    """

    def __init__(
        self,
        source: SampleSource | EvaluationDataset,
        sampler: EpochSampler,
        *,
        look_ahead: bool = False,
        **options: Any,
    ) -> None:
        self.loader: DataLoader[Any] = DataLoader(source, batch_sampler=sampler, **options)  # type: ignore[arg-type]
        self.batch_sampler = sampler  # where Lightning looks for the `set_epoch` of its `sampler`
        self.look_ahead = look_ahead
        self._handed_out = 0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        self._handed_out = self.batch_sampler.first_batch
        for batch in with_upcoming(self.loader) if self.look_ahead else self.loader:
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Position: the epoch and how many of its batches were handed out."""
        return {"epoch": self.batch_sampler.epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues after the batches that were handed out."""
        self.batch_sampler.epoch = state["epoch"]
        self.batch_sampler.first_batch = state["batches"] if state["batches"] < len(self.batch_sampler) else 0


def with_upcoming(batches: Iterable[PromptBatch]) -> Iterator[PromptBatch]:
    """Each batch with its successor as `upcoming`; the last has none."""
    for batch, following in pairwise(chain(batches, [None])):
        if batch is not None:
            yield replace(batch, upcoming=following)
