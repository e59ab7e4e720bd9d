"""ShapeScenes: a miniature reasoning-segmentation world, drawn on the fly.

An image is a 4 × 4 grid of 28-pixel cells, one visual token of Qwen2.5-VL each; four to six cells hold one
coloured shape. The background's red grows with x and its green with y, so that a tiny vision tower can tell where
a token sits. Queries come at three levels:

- *easy*, attribute lookup: "the red circle".
- *medium*, comparison: "the largest shape", "the leftmost shape".
- *hard*, computing rather than seeing. A **trail** ("the shape where the trail from red ends after 4 steps, with
  blue to green, red to white, …") is an in-context pointer chase: each written step is one lookup, but all of them
  at once exceed what a shallow network computes in one pass. A **relation** ("the shape right of the red circle")
  needs one hop through the image.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image

from pixelthink.data.base import SampleSource
from pixelthink.errors import UserError
from pixelthink.geometry import target_from_mask
from pixelthink.types import LEVELS, Level, Sample

GRID = 4
CELL = 28
IMAGE_SIZE = GRID * CELL

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (235, 25, 25),
    "green": (15, 165, 40),
    "blue": (25, 45, 235),
    "yellow": (250, 235, 40),
    "black": (10, 10, 10),
    "white": (252, 252, 252),
}
SHAPES = ("circle", "square", "diamond", "cross")
SIZES = {"small": 10, "medium": 16, "large": 22}
RELATION_SHARE = 0.2
"""Share of relations among hard queries."""


@dataclass(frozen=True)
class SceneObject:
    """One shape of a scene.

    Attributes:
        color: Name of its colour; unique within the scene.
        shape: One of `SHAPES`.
        size: Name of its size class.
        row: Grid row, 0 at the top.
        column: Grid column, 0 at the left.
    """

    color: str
    shape: str
    size: str
    row: int
    column: int

    @property
    def center(self) -> tuple[int, int]:
        """Centre (x, y) in pixels."""
        return self.column * CELL + CELL // 2, self.row * CELL + CELL // 2

    @property
    def cell(self) -> str:
        """Where it is, as on a chess board: column a to d from the left, row 1 to 4 from the top."""
        return f"{'abcd'[self.column]}{self.row + 1}"

    @property
    def sighting(self) -> str:
        """Colour, cell and size, e.g. "red b2 large": its box follows from these."""
        return f"{self.color} {self.cell} {self.size}"

    def mask(self) -> np.ndarray:
        """Exact mask, bool (IMAGE_SIZE, IMAGE_SIZE), not writable."""
        return shape_mask(self.shape, SIZES[self.size] / 2, self.center)


@lru_cache(maxsize=1024)
def shape_mask(shape: str, radius: float, center: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres lie in a shape, bool (IMAGE_SIZE, IMAGE_SIZE), not writable."""
    ys, xs = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] + 0.5
    dx, dy = np.abs(xs - center[0]), np.abs(ys - center[1])
    mask = {
        "circle": dx**2 + dy**2 <= radius**2,
        "square": np.maximum(dx, dy) <= radius,
        "diamond": dx + dy <= radius,
        "cross": (np.maximum(dx, dy) <= radius) & (np.minimum(dx, dy) <= radius * 0.4),
    }[shape]
    mask.setflags(write=False)
    return mask


@dataclass(frozen=True)
class SceneQuery:
    """A question about a scene, its answer, and the working that leads to it.

    Attributes:
        text: The question.
        level: The level it was made for.
        target: Index of the answer in the scene's objects.
        hops: Number of dependent lookups that it takes.
        steps: The working, one phrase a step; empty where there is nothing to work out.
    """

    text: str
    level: Level
    target: int
    hops: int
    steps: str


def draw_scene(objects: tuple[SceneObject, ...]) -> np.ndarray:
    """Image of a scene, uint8 RGB (IMAGE_SIZE, IMAGE_SIZE, 3); the colour of the background encodes position."""
    ramp = np.linspace(20, 220, IMAGE_SIZE).astype(np.uint8)
    image = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 120, dtype=np.uint8)
    image[..., 0] = ramp[None, :]
    image[..., 1] = ramp[:, None]
    for item in objects:
        image[item.mask()] = COLORS[item.color]
    return image


def sample_scene(rng: np.random.Generator) -> tuple[SceneObject, ...]:
    """Four to six objects with distinct colours in distinct cells, in reading order."""
    count = int(rng.integers(4, 7))
    cells = np.sort(rng.choice(GRID * GRID, size=count, replace=False))
    colors = rng.choice(list(COLORS), size=count, replace=False)
    objects = []
    for cell, color in zip(cells, colors, strict=True):
        size, shape = str(rng.choice(list(SIZES))), str(rng.choice(SHAPES))
        objects.append(SceneObject(str(color), shape, size, *divmod(int(cell), GRID)))
    return tuple(objects)


def _easy(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> SceneQuery:
    target = int(rng.integers(len(objects)))
    item = objects[target]
    noun = item.shape if rng.random() < 0.7 else "shape"
    return SceneQuery(f"the {item.color} {noun}", "easy", target, 1, "")


def _medium(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> SceneQuery | None:
    sizes = [SIZES[o.size] for o in objects]
    keys = {
        "largest": [-s for s in sizes],
        "smallest": sizes,
        "leftmost": [o.column for o in objects],
        "rightmost": [-o.column for o in objects],
        "highest": [o.row for o in objects],
        "lowest": [-o.row for o in objects],
    }
    words = list(keys)
    rng.shuffle(words)
    for word in words:
        values = keys[word]
        if values.count(min(values)) == 1:
            return SceneQuery(f"the {word} shape", "medium", values.index(min(values)), 1, "")
    return None


def _relation(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> SceneQuery | None:
    moves = {"right of": (0, 1), "left of": (0, -1), "above": (-1, 0), "below": (1, 0)}
    cells = {(o.row, o.column): i for i, o in enumerate(objects)}
    options = [
        (anchor, word, cells[o.row + dr, o.column + dc])
        for anchor, o in enumerate(objects)
        for word, (dr, dc) in moves.items()
        if (o.row + dr, o.column + dc) in cells
    ]
    if not options:
        return None
    anchor, word, target = options[int(rng.integers(len(options)))]
    known = objects[anchor]
    steps = f" {known.sighting}. {word} {objects[target].cell}."
    return SceneQuery(f"the shape {word} the {known.color} {known.shape}", "hard", target, 2, steps)


def _trail(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> SceneQuery:
    """A pointer chase over a single cycle of all six colours, so that no walk backwards is shorter."""
    cycle = [str(c) for c in rng.permutation(list(COLORS))]
    hops = int(rng.integers(2, 5))
    target = int(rng.integers(len(objects)))
    end = cycle.index(objects[target].color)
    path = [cycle[(end - hops + k) % len(cycle)] for k in range(hops + 1)]
    links = [f"{a} {b}" for a, b in zip(cycle, cycle[1:] + cycle[:1], strict=True)]
    rng.shuffle(links)
    text = f"the shape where the trail from {path[0]} ends after {hops} steps: {', '.join(links)}"
    return SceneQuery(text, "hard", target, hops, f" {' '.join(path)}.")


def sample_query(objects: tuple[SceneObject, ...], level: str, rng: np.random.Generator) -> SceneQuery | None:
    """A question of one level about a scene, or None where the scene allows none of the kind that was drawn."""
    if level == "easy":
        return _easy(objects, rng)
    if level == "medium":
        return _medium(objects, rng)
    return _relation(objects, rng) if rng.random() < RELATION_SHARE else _trail(objects, rng)


def rate_difficulty(objects: tuple[SceneObject, ...], query: SceneQuery) -> float:
    """Difficulty, 1–10: the mean of a scene, a segmentation and a language rating, as the paper's rater gives three.

    Scene: 2.5, 3 or 3.5 for four, five or six shapes. Segmentation: 2.5, 3 or 3.5 for a large, medium or small target.
    Language: 2 for a lookup, 6.5 for a comparison, 10 for anything with hops. So easy queries lie in 2.3–3.0, medium
    ones in 3.8–4.5 and hard ones in 5.0–5.7, one range for each branch of the released budget rule.
    """
    scene = 2.5 + 0.5 * (len(objects) - 4)
    segmentation = {"large": 2.5, "medium": 3.0, "small": 3.5}[objects[query.target].size]
    language = {"easy": 2.0, "medium": 6.5, "hard": 10.0}[query.level]
    return (scene + segmentation + language) / 3


def reference_reasoning(
    objects: tuple[SceneObject, ...], query: SceneQuery, rng: np.random.Generator
) -> dict[str, str]:
    """Reference reasoning by style: "verbose" (lists all, works, checks again), "steps" (works), "brief" (answers);
    and, for learning to see before learning to reason, "caption" (lists all, answers nothing).

    The list comes in random order, so that every item trains to find a place from its name, as an answer has to.
    """
    found = f"it is the {objects[query.target].sighting}."
    listed = [objects[i] for i in rng.permutation(len(objects))]
    seen = ", ".join(item.sighting for item in listed)
    work = query.steps or " compare all of them."
    return {
        "verbose": f"i see {seen}. now follow the question.{work} {found} check again, yes, {found}",
        "steps": f"follow{query.steps} {found}" if query.steps else found,
        "brief": found,
        "caption": f"i see {seen}",
    }


def _split_of(objects: tuple[SceneObject, ...]) -> str:
    """The split of a scene: a function of its layout alone."""
    layout = repr([(o.color, o.shape, o.size, o.center) for o in objects])
    return {0: "val", 1: "test"}.get(zlib.crc32(layout.encode()) % 8, "train")


class ShapeScenes(SampleSource):
    """Endless miniature scenes, made to order: sample i of a split is the same wherever and whenever it is drawn.

    A scene's layout decides which split it belongs to, so no image of one split can occur in another.

    Args:
        split: "train" (six in eight of all layouts), "val" or "test" (one in eight each).
        size: Number of samples.
        seed: Other seeds give other samples of the same split.
        levels: Levels to draw from.
        odds: How often easy, medium and hard queries come, relative to each other.
    """

    def __init__(
        self,
        split: Literal["train", "val", "test"] = "train",
        size: int = 1024,
        seed: int = 0,
        levels: Sequence[Level] = LEVELS,
        odds: tuple[float, float, float] = (0.25, 0.25, 0.5),
    ) -> None:
        if size < 1 or not levels:
            raise UserError("ShapeScenes: size must be at least 1 and levels must not be empty")
        if min(odds) <= 0:
            raise UserError(f"ShapeScenes: odds must be positive, got {odds}; leave a level out by levels")
        self.split = split
        self.size = size
        self.seed = seed
        self.levels = tuple(levels)
        chosen = np.array([dict(zip(LEVELS, odds, strict=True))[level] for level in self.levels])
        self.probabilities = chosen / chosen.sum()

    def __len__(self) -> int:
        return self.size

    def ids(self) -> list[str]:
        return [self._id(index) for index in range(self.size)]

    def _id(self, index: int) -> str:
        return f"shapes-{self.split}-{self.seed}-{index}"

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(f"ShapeScenes has {self.size} samples, there is no number {index}")
        rng = np.random.default_rng([self.seed, ("train", "val", "test").index(self.split), index])
        level = str(rng.choice(self.levels, p=self.probabilities))
        query = None
        while query is None:
            objects = sample_scene(rng)
            if _split_of(objects) == self.split:
                query = sample_query(objects, level, rng)
        mask = objects[query.target].mask()
        return Sample(
            id=self._id(index),
            image=Image.fromarray(draw_scene(objects)),
            question=query.text,
            mask=mask,
            targets=(target_from_mask(mask),),
            difficulty=rate_difficulty(objects, query),
            reasoning=reference_reasoning(objects, query, rng),
            meta={"level": query.level, "hops": query.hops},
        )
