"""Segmenters of the Segment Anything kind: embed an image once, then decode any number of boxes and points."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from cachetools import LRUCache
from torch import Tensor

from pixelthink.errors import UserError
from pixelthink.geometry import Box, Point
from pixelthink.segmenters.base import SegmentationRequest, Segmenter

Pick = Literal["score", "largest"]
"""Which of several proposed masks to take: the one that the model scores highest, or the one with most pixels."""

Autocast = Literal["none", "bfloat16", "float16"]
"""Precision of matrix products: that of the weights, or lower (the released evaluation runs under bfloat16)."""

Embedding = tuple[Tensor, ...]
"""What an image encoder makes of one image: feature maps (1, C, h, w), as its decoder takes them."""

ObjectPrompt = tuple[int, Box, tuple[Point, ...]]
"""Index of the request that an object belongs to, its box `(x1, y1, x2, y2)` and its one or two points, in pixels."""


def content_key(image: np.ndarray) -> bytes:
    """A key that only equal images share.

    Args:
        image: uint8 (H, W, 3).
    """
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


class PromptableSegmenter(Segmenter):
    """Embeds each image once, decodes the objects of all its requests side by side, and joins them by request.

    An object's prompt is its box and its points, all positive, in original pixels, as in the released evaluation. Of
    the masks that the model proposes for it one is picked at the model's own resolution and then enlarged to the
    image's; the mask of a request is the union over its objects. The defaults are the released evaluation's, except
    that it runs under bfloat16.

    Args:
        checkpoint: Where the weights are, see the class; None takes the hub's release that the class names.
        multimask: Ask the model for its three proposals; false asks for its single mask, which leaves nothing to pick.
        pick: Which proposal to take.
        autocast: Precision of matrix products, whatever precision is set around the call.
        batch_images: Images embedded in one call. Like the next, changes memory and speed, and logits by no more than
            float rounding.
        batch_objects: Objects of one image decoded in one call.
        cached_images: Embeddings kept on the device, by content; about 16 MB each (SAM 2, float32).
        local_files_only: Never ask a model hub.

    Raises:
        UserError: a number out of range.
    """

    released_checkpoint: str
    """The hub id that `checkpoint: null` stands for."""

    def __init__(
        self,
        checkpoint: str | None = None,
        multimask: bool = True,
        pick: Pick = "score",
        autocast: Autocast = "none",
        batch_images: int = 4,
        batch_objects: int = 16,
        cached_images: int = 32,
        local_files_only: bool = False,
    ) -> None:
        if batch_images < 1 or batch_objects < 1 or cached_images < 0:
            raise UserError(
                f"{type(self).__name__}: batch_images and batch_objects must be at least 1 and cached_images not "
                f"negative, got {batch_images}, {batch_objects} and {cached_images}"
            )
        self.checkpoint = self.released_checkpoint if checkpoint is None else checkpoint
        self.multimask = multimask
        self.pick = pick
        self.autocast = autocast
        self.batch_images = batch_images
        self.batch_objects = batch_objects
        self.local_files_only = local_files_only
        self.cache: LRUCache[bytes, Embedding] = LRUCache(cached_images)
        self.embedded_images = 0
        """Images embedded so far; those found in the cache are not counted."""
        self.device: torch.device | None = None

    def setup(self, device: str = "cpu") -> None:
        """Loads the weights onto the device, without a draw from the run's random numbers; once.

        Raises:
            MissingPackageError: the library is missing; one line with the command that installs it.
            FileError: there is no checkpoint, or it is damaged; one line that names it.
        """
        if self.device == torch.device(device):
            return
        with torch.random.fork_rng(devices=[]):
            self._load(torch.device(device))
        self.device = torch.device(device)
        self.cache.clear()

    @abstractmethod
    def _load(self, device: torch.device) -> None:
        """Loads the weights, in evaluation mode."""

    @abstractmethod
    def _embed(self, images: list[np.ndarray]) -> Sequence[Tensor]:
        """Feature maps, (B, C, h, w) each, of B images, uint8 (H, W, 3) each of its own size."""

    @abstractmethod
    def _decode(
        self, embedding: Embedding, size: tuple[int, int], boxes: np.ndarray, points: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Masks that the model proposes for objects of one image.

        Args:
            embedding: The image's.
            size: (H, W) of the image.
            boxes: float32 (B, 4), original pixels.
            points: float32 (B, n, 2), original pixels, all positive.

        Returns:
            Logits (B, M, h, w) at the model's resolution, and scores (B, M).
        """

    @abstractmethod
    def _enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (h, w) at the model's resolution → float32 (H, W)."""

    def segment(self, requests: Sequence[SegmentationRequest]) -> list[np.ndarray]:
        """Masks, bool (H, W), one a request and in its order. A request without objects gives an empty mask."""
        masks = [np.zeros(request.image.size[::-1], dtype=bool) for request in requests]
        for index, logits in self._logits(requests):
            masks[index] |= (logits > 0).cpu().numpy()
        return masks

    def probabilities(self, requests: Sequence[SegmentationRequest]) -> list[np.ndarray]:
        """Logistic function of the logits, float32 (H, W), one a request; 0 where a request has no objects."""
        maps = [np.zeros(request.image.size[::-1], dtype=np.float32) for request in requests]
        for index, logits in self._logits(requests):
            maps[index] = np.maximum(maps[index], logits.sigmoid().cpu().numpy())
        return maps

    def _logits(self, requests: Sequence[SegmentationRequest]) -> Iterator[tuple[int, Tensor]]:
        """(index of the request, logits (H, W)) of every object of every request, image by image."""
        if self.device is None:
            raise RuntimeError(f"{type(self).__name__}.setup() has to load the weights before anything is segmented")
        images: dict[bytes, np.ndarray] = {}
        prompts: dict[bytes, list[ObjectPrompt]] = {}
        for index, request in enumerate(requests):
            if not request.objects:
                continue
            image = np.array(request.image.convert("RGB"))
            key = content_key(image)
            images.setdefault(key, image)
            for target in request.objects:
                box, points = target.box_xyxy, target.points_xy[: request.points_per_object]
                if not np.isfinite([*box, *np.ravel(points)]).all():
                    raise UserError(f"boxes and points to be segmented must be finite, got {box} and {points}")
                prompts.setdefault(key, []).append((index, box, points))
        keys = list(images)
        for start in range(0, len(keys), self.batch_images):
            batch = {key: images[key] for key in keys[start : start + self.batch_images]}
            for key, embedding in self._embeddings(batch).items():
                yield from self._decoded(embedding, images[key].shape[:2], prompts[key])

    @torch.no_grad()
    def _embeddings(self, images: dict[bytes, np.ndarray]) -> dict[bytes, Embedding]:
        """Embeddings of a few images by key; those that are not in the cache are made in one call."""
        found: dict[bytes, Embedding] = {key: self.cache[key] for key in images if key in self.cache}
        missing = [key for key in images if key not in found]
        if missing:
            with self._precision():
                levels = self._embed([images[key] for key in missing])
            self.embedded_images += len(missing)
            for i, key in enumerate(missing):
                found[key] = tuple(level[i : i + 1].clone() for level in levels)
                if self.cache.maxsize:
                    self.cache[key] = found[key]
        return {key: found[key] for key in images}

    @torch.no_grad()
    def _decoded(
        self, embedding: Embedding, size: tuple[int, int], prompts: Sequence[ObjectPrompt]
    ) -> Iterator[tuple[int, Tensor]]:
        """(index of the request, logits (H, W)) of objects of one image; those with as many points go together."""
        for count in (1, 2):
            alike = [prompt for prompt in prompts if len(prompt[2]) == count]
            for start in range(0, len(alike), self.batch_objects):
                indices, boxes, points = zip(*alike[start : start + self.batch_objects], strict=True)
                with self._precision():
                    proposals, scores = self._decode(
                        embedding, size, np.array(boxes, dtype=np.float32), np.array(points, dtype=np.float32)
                    )
                for index, logits in zip(indices, self._picked(proposals, scores), strict=True):
                    yield index, self._enlarge(logits, size)

    def _picked(self, proposals: Tensor, scores: Tensor) -> Tensor:
        """One of M proposals for each of B objects: logits (B, M, h, w), scores (B, M) → logits (B, h, w)."""
        by = scores if self.pick == "score" else (proposals > 0).sum(dim=(2, 3))
        return proposals[torch.arange(len(proposals), device=proposals.device), by.argmax(dim=1)]

    def _precision(self) -> torch.autocast:
        """The precision that was asked for, also inside of a trainer's autocast."""
        assert self.device is not None
        dtype = torch.bfloat16 if self.autocast == "none" else getattr(torch, self.autocast)
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.autocast != "none")
