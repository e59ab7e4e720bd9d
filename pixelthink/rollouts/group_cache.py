"""A key-value cache in which all completions of a prompt share one row, so that the prompt is stored and read once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PROMPT = -1
"""Owner of columns that every completion of the row sees."""
NOBODY = -2
"""Owner of columns that no completion sees: padding."""
IDLE = -3
"""Slot of a query that belongs to no completion."""


class GroupCache:
    """Keys and values of P prompts and what has been sampled after them, a row per prompt.

    A column of a row belongs to the prompt or to one completion. It has the methods of a transformers `Cache` that
    models call: `update`, and in the prefill also those about sizes.

    Args:
        reserve: Columns to allocate beyond the prompts' at first; more are allocated when needed.
    """

    def __init__(self, reserve: int) -> None:
        self.reserve = reserve
        self.layers: list[list[Tensor]] = []  # [keys, values], (P, key-value heads, capacity, D)
        self.owner = torch.zeros(0, 0, dtype=torch.int64)
        self.start = 0

    @property
    def columns(self) -> int:
        """Filled columns."""
        return self.owner.shape[1]

    def open_prompts(self, lengths: Tensor) -> None:
        """Declares that prompts of these lengths (P,), padded on the right, fill the first columns."""
        place = torch.arange(int(lengths.max()), device=lengths.device)
        self.owner = torch.where(place[None] < lengths[:, None], PROMPT, NOBODY)

    def open(self, slots: Tensor) -> None:
        """Declares that the next columns belong to these completions; `slots` is (P, Q), numbers in a group or IDLE."""
        self.start = self.columns
        self.owner = torch.cat([self.owner, torch.where(slots == IDLE, NOBODY, slots)], dim=1)

    def visible(self, slots: Tensor) -> Tensor:
        """Returns which columns each completion sees, bool (P, Q, columns); an idle slot sees the prompt."""
        owner = self.owner[:, None]
        return (owner == PROMPT) | (owner == slots[:, :, None])

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stores a layer's new keys and values, (P, heads, new columns, D), and returns all of the layer."""
        end = self.start + keys.shape[2]
        if layer_idx == len(self.layers):
            self.layers.append([_room(new, end + self.reserve) for new in (keys, values)])
        held = self.layers[layer_idx]
        for i, new in enumerate((keys, values)):
            if held[i].shape[2] < end:
                wider = _room(new, grown(end))
                wider[:, :, : self.start] = held[i][:, :, : self.start]
                held[i] = wider
            held[i][:, :, self.start : end] = new
        return held[0][:, :, :end], held[1][:, :, :end]

    def keep(self, rows: Tensor, slots: Tensor) -> None:
        """Keeps some rows, and of the columns those of the prompts and of some completions.

        Args:
            rows: Rows to keep, int64 (P',).
            slots: Completions to keep in each of them, (P', Q).
        """
        owner = self.owner[rows]
        wanted = (owner == PROMPT) | (owner[:, :, None] == slots[:, None]).any(dim=-1)
        order = (~wanted).int().argsort(dim=1, stable=True)[:, : int(wanted.sum(dim=1).max())]
        self.owner = torch.where(wanted.gather(1, order), owner.gather(1, order), NOBODY)
        for held in self.layers:
            for i, tensor in enumerate(held):
                old = tensor[rows]
                index = order[:, None, :, None].expand(-1, old.shape[1], -1, old.shape[3])
                held[i] = _room(old, self.columns + self.reserve)
                held[i][:, :, : self.columns] = old.gather(2, index)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Returns number and offset of the keys in the prefill."""
        return query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Returns the place of the first query in the prefill."""
        return 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns the number of columns before this forward."""
        return self.start


def grown(columns: int) -> int:
    """Returns how many columns a cache allocates when it needs this many and has fewer."""
    return columns + columns // 2


def _room(like: Tensor, columns: int) -> Tensor:
    """Returns an uninitialised tensor (P, heads, columns, D) like another; never read before it is written."""
    return like.new_empty(like.shape[0], like.shape[1], columns, like.shape[3])
