"""A dataloader whose order is a function of seed and epoch, and whose position is part of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from pixelthink.data.base import SampleSource


class EpochSampler(Sampler[list[int]]):
    """Batches of indices for one process; restartable in the middle of an epoch.

    Every process draws the same permutation and takes every `world_size`-th batch-sized share of it, so the
    processes together see the batches that one process would have seen. In training the incomplete last batch is
    left out; in evaluation nothing is, and no index is repeated.

    Args:
        length: Number of samples.
        batch_size: Samples per batch over all processes.
        seed: Seed of the order.
        shuffle: Draw a new order every epoch, or keep the source's.
        drop_last: Leave the incomplete last batch out.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"a batch of {batch_size} prompts does not divide among {world_size} processes")
        if drop_last and length < batch_size:
            raise ValueError(f"{length} samples do not fill one batch of {batch_size}")
        self.length, self.batch_size = length, batch_size
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.first_batch = 0

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
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.length, generator=generator).tolist()
        share = self.batch_size // self.world_size
        first, self.first_batch = self.first_batch, 0
        for index in range(first, len(self)):
            batch = order[index * self.batch_size : (index + 1) * self.batch_size]
            mine = batch[self.rank * share : (self.rank + 1) * share]
            if mine:
                yield mine


class ResumableLoader(DataLoader[Any]):
    """A `DataLoader` over an `EpochSampler` that Lightning can save and restore between two batches."""

    def __init__(self, source: SampleSource, sampler: EpochSampler, **options: Any) -> None:
        super().__init__(source, batch_sampler=sampler, **options)  # type: ignore[arg-type]
        self.epoch_sampler = sampler
        self._handed_out = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._handed_out = self.epoch_sampler.first_batch
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Position: the epoch and how many of its batches were handed out."""
        return {"epoch": self.epoch_sampler.epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues after the batches that were handed out."""
        self.epoch_sampler.epoch = state["epoch"]
        self.epoch_sampler.first_batch = state["batches"] if state["batches"] < len(self.epoch_sampler) else 0
