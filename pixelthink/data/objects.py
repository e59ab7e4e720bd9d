"""Whether the questions about one object really have one target."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from pixelthink.types import Sample


class ObjectTargets:
    """Remembers the target mask of each object, as a digest, and refuses a second one.

    Attributes:
        known: Object → the first sample that asked for it, and the digest of its target.
    """

    def __init__(self) -> None:
        self.known: dict[str, tuple[str, bytes]] = {}

    def add(self, sample: Sample) -> Sample:
        """Looks at a sample and returns it; one without object or known target has nothing to be compared.

        Raises:
            ValueError: an earlier sample of the object has another target; one line that names both.
        """
        if sample.object_id is not None and sample.mask is not None:
            self.add_mask(repr(sample.object_id), repr(sample.id), sample.mask)
        return sample

    def add_mask(self, name: str, owner: str, mask: np.ndarray) -> None:
        """Looks at a target.

        Args:
            name: What errors call the object; equal for equal objects only.
            owner: What errors call the sample.
            mask: bool (H, W).

        Raises:
            ValueError: as in `add`.
        """
        content = hashlib.blake2b(repr(mask.shape).encode() + np.packbits(mask).tobytes(), digest_size=16)
        self.merge({name: (owner, content.digest())})

    def merge(self, others: Mapping[str, tuple[str, bytes]]) -> None:
        """Adds what another process knows.

        Raises:
            ValueError: as in `add`.
        """
        for name, (owner, digest) in others.items():
            first, of_first = self.known.setdefault(name, (owner, digest))
            if of_first != digest:
                raise ValueError(f"samples {first} and {owner} ask for the object {name}, but have different targets")
