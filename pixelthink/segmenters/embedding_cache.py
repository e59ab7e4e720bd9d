"""Image embeddings kept by content: equal pixels are embedded once, whoever asks and however often."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np
from torch import Tensor

from pixelthink.errors import UserError

Embedding = tuple[Tensor, ...]
"""What an image encoder makes of one image: feature maps (1, C, h, w), as its decoder takes them."""


def content_key(image: np.ndarray) -> bytes:
    """A key that equal images share and others do not, whatever objects hold them.

    Args:
        image: uint8 (H, W, 3).
    """
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


class EmbeddingCache:
    """The embeddings that were used last.

    Args:
        capacity: How many to keep; 0 keeps none.

    Raises:
        UserError: a negative capacity.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise UserError(f"an embedding cache cannot hold {capacity} images")
        self.capacity = capacity
        self._held: OrderedDict[bytes, Embedding] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def clear(self) -> None:
        """Lets go of everything."""
        self._held.clear()

    def get(self, key: bytes) -> Embedding | None:
        """The embedding, which now counts as used last; None where it is not held."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, key: bytes, embedding: Embedding) -> None:
        """Keeps an embedding, and lets go of those that were not used for longest where there are too many."""
        self._held[key] = embedding
        self._held.move_to_end(key)
        while len(self._held) > self.capacity:
            self._held.popitem(last=False)
