"""The order of samples: a function of seed and epoch, shared between processes, resumable within an epoch."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import RandomSampler

from pixelthink.data.loader import EpochSampler, ResumableLoader
from pixelthink.data.sources.shape_scenes import ShapeScenes


def batches(epoch: int = 0, **options: object) -> list[list[int]]:
    sampler = EpochSampler(10, 4, **options)  # type: ignore[arg-type]
    sampler.set_epoch(epoch)
    return list(sampler)


def test_evaluation_sees_every_sample_once_in_order() -> None:
    assert batches() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_training_shuffles_by_seed_and_epoch_and_drops_the_rest() -> None:
    first = batches(shuffle=True, drop_last=True, seed=1)
    assert [len(batch) for batch in first] == [4, 4]
    assert first == batches(shuffle=True, drop_last=True, seed=1)
    assert first != batches(shuffle=True, drop_last=True, seed=2)
    assert first != batches(1, shuffle=True, drop_last=True, seed=1)


def test_the_first_order_is_that_of_a_released_recipe() -> None:
    """`ray_trainer.py` of the released code hands a `RandomSampler` a generator with `data.seed`."""
    theirs = list(RandomSampler(range(100), generator=torch.Generator().manual_seed(42)))
    sampler = EpochSampler(100, 16, seed=42, shuffle=True, drop_last=True)
    assert [index for batch in sampler for index in batch] == theirs[:96]


def test_two_processes_share_what_one_would_see() -> None:
    whole = batches(shuffle=True, drop_last=True)
    shares = [batches(shuffle=True, drop_last=True, rank=rank, world_size=2) for rank in (0, 1)]
    dealt = [[index for pair in zip(*both, strict=True) for index in pair] for both in zip(*shares, strict=True)]
    assert dealt == whole
    assert [batches(rank=rank, world_size=2) for rank in (0, 1)] == [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7], [9]]]


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 4 prompts does not divide among 3 processes"):
        batches(world_size=3)


def test_a_restored_loader_goes_on_where_it_was() -> None:
    def loader() -> ResumableLoader:
        sampler = EpochSampler(10, 4, seed=5, shuffle=True)
        return ResumableLoader(ShapeScenes(size=10), sampler, collate_fn=lambda samples: [s.id for s in samples])

    straight = list(loader())
    interrupted, resumed = loader(), loader()
    iterator = iter(interrupted)
    seen = [next(iterator)]
    resumed.load_state_dict(interrupted.state_dict())
    assert seen + list(resumed) == straight
    finished = loader()
    list(finished)
    resumed.load_state_dict(finished.state_dict())
    assert len(list(resumed)) == 3
