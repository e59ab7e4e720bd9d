"""Where things are: coordinate frames, boxes, representative points and run-length masks.

Pixel conventions, used everywhere in the package:

- A coordinate is a pixel index: x from 0 to width − 1, y from 0 to height − 1. Sizes are written (width, height).
- A box `(x1, y1, x2, y2)` holds both of its corners, so a box is `x2 − x1 + 1` pixels wide: the +1 convention of the
  released reward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

AnswerConvention = Literal["pixels", "per_mille"]

PER_MILLE = 1000
CENTROID_WINDOW = 10
MAX_RLE_PIXELS = 2**28


Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Target:
    """One object to be found, in the coordinates of whoever holds it.

    Attributes:
        box_xyxy: Tight box, both corners inside.
        points_xy: The two representative points (Seg-Zero's inscribed-circle centres).
    """

    box_xyxy: Box
    points_xy: tuple[Point, Point]


@dataclass(frozen=True)
class CoordinateFrame:
    """Original pixels ↔ the coordinates in which a model answers.

    The image is resized to the model's size, its aspect not necessarily kept, and the model answers in a convention of
    its own. Seg-Zero's and PixelThink's training rows, "the 840-pixel coordinates", are the frame with
    `model_size=(840, 840)` and `convention="pixels"`.

    Boxes are mapped by their corners as points are, by one factor an axis: the order of corners and the containment of
    points in boxes survive exactly. (Mapping the far corner as `(x2 + 1)·factor − 1` would keep the covered area, but
    shrinking could then put a contained point outside its box; the released code does not do it either.) Nothing is
    rounded or clipped on the way: an answer written as whole numbers loses at most half an answer unit, that is half a
    model pixel for `"pixels"`, and for `"per_mille"` on models up to 1000 pixels. `clip_target` is a separate step.

    Attributes:
        original_size: (width, height) of the image on disk.
        model_size: (width, height) of the image the model sees.
        convention: `"pixels"`: pixels of the model's image (Qwen2.5-VL); `"per_mille"`: 0 to 1000 over the image's
            width and height (Qwen3-VL).

    Raises:
        ValueError: a size that is not two positive integers, or an unknown convention.
    """

    original_size: tuple[int, int]
    model_size: tuple[int, int]
    convention: AnswerConvention = "pixels"

    def __post_init__(self) -> None:
        for name in ("original_size", "model_size"):
            size = getattr(self, name)
            if len(size) != 2 or any(not isinstance(n, (int, np.integer)) or n < 1 for n in size):
                raise ValueError(f"{name} must be two positive integers (width, height), got {size!r}")
        if self.convention not in ("pixels", "per_mille"):
            raise ValueError(f"convention must be 'pixels' or 'per_mille', got {self.convention!r}")

    @property
    def answer_size(self) -> tuple[int, int]:
        """(width, height) of the whole image in answer coordinates."""
        return self.model_size if self.convention == "pixels" else (PER_MILLE, PER_MILLE)

    @property
    def factors(self) -> tuple[float, float]:
        """Answer units in one original pixel, along x and along y."""
        return self.answer_size[0] / self.original_size[0], self.answer_size[1] / self.original_size[1]

    def point_to_answer(self, point: Point) -> Point:
        """Maps a point from original pixels to answer coordinates."""
        fx, fy = self.factors
        return point[0] * fx, point[1] * fy

    def point_to_original(self, point: Point) -> Point:
        """Maps a point from answer coordinates to original pixels."""
        fx, fy = self.factors
        return point[0] / fx, point[1] / fy

    def box_to_answer(self, box: Box) -> Box:
        """Maps a box, corner by corner, from original pixels to answer coordinates."""
        return (*self.point_to_answer(box[:2]), *self.point_to_answer(box[2:]))

    def box_to_original(self, box: Box) -> Box:
        """Maps a box, corner by corner, from answer coordinates to original pixels."""
        return (*self.point_to_original(box[:2]), *self.point_to_original(box[2:]))

    def target_to_answer(self, target: Target) -> Target:
        """Maps a target's box and points from original pixels to answer coordinates."""
        first, second = target.points_xy
        points = self.point_to_answer(first), self.point_to_answer(second)
        return Target(self.box_to_answer(target.box_xyxy), points)

    def target_to_original(self, target: Target) -> Target:
        """Maps a target's box and points from answer coordinates to original pixels."""
        first, second = target.points_xy
        points = self.point_to_original(first), self.point_to_original(second)
        return Target(self.box_to_original(target.box_xyxy), points)


def clip_point(point: Point, width: int, height: int) -> Point:
    """The point of an image of width × height pixels that is nearest to `point`.

    Raises:
        ValueError: a coordinate is not a number; infinite ones are clipped like any other.
    """
    if any(math.isnan(value) for value in point):
        raise ValueError(f"coordinates must be numbers, got {point!r}")
    return min(max(point[0], 0.0), width - 1.0), min(max(point[1], 0.0), height - 1.0)


def clip_box(box: Box, width: int, height: int) -> Box:
    """Moves each corner to the nearest point of the image; a box wholly outside becomes an edge of it."""
    return (*clip_point(box[:2], width, height), *clip_point(box[2:], width, height))


def clip_target(target: Target, width: int, height: int) -> Target:
    """Clips the box and both points to the image."""
    first, second = target.points_xy
    points = clip_point(first, width, height), clip_point(second, width, height)
    return Target(clip_box(target.box_xyxy, width, height), points)


def box_area(box: Box) -> float:
    """Pixels in a box, both corners counted; 0 where the corners are in the wrong order by a pixel or more."""
    return max(0, box[2] - box[0] + 1) * max(0, box[3] - box[1] + 1)


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, with the +1 pixel convention of the released reward.

    Args:
        a: Box `(x1, y1, x2, y2)`, both corners inside.
        b: Another, in the same coordinates.

    Returns:
        IoU in [0, 1]; 0 where the boxes share no pixel, or where one of them is turned inside out.
    """
    shared = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    intersection = box_area(shared)
    union = box_area(a) + box_area(b) - intersection
    return intersection / union if intersection > 0 and union > 0 else 0.0


def point_in_box(point: Point, box: Box) -> bool:
    """Whether a point lies in a box, its border included."""
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def box_is_outside(box: Box, width: int, height: int) -> bool:
    """Whether a box has nothing in common with an area of width × height."""
    return box[2] < 0 or box[3] < 0 or box[0] >= width or box[1] >= height


def box_reaches_beyond(box: Box, width: int, height: int) -> bool:
    """Whether a corner of a box lies outside an area of width × height."""
    return min(box) < 0 or max(box[0], box[2]) > width or max(box[1], box[3]) > height


def mask_box(mask: np.ndarray) -> Box:
    """Tight box of a mask, both corners inside.

    Args:
        mask: bool (H, W).

    Raises:
        ValueError: the mask is empty or not two-dimensional.
    """
    columns, rows = np.flatnonzero(_checked(mask).any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])


def representative_points(mask: np.ndarray) -> np.ndarray:
    """Seg-Zero's two points of a mask, near the centres of its two largest inscribed circles.

    The first is the maximum of the Euclidean distance transform (the image's border is no background); the second is
    the maximum among the mask's pixels farther from the first than their median distance. Ties go to the first pixel
    in reading order. Where no pixel is farther than the median (a single pixel, a cross of five), the second is the
    maximum within ±10 px of the centroid, and the mask's pixel nearest to the centroid where that window misses it.

    A mask that covers its whole image has no background; there, and only there, the border counts as background
    (scipy's transform, which the released code calls, is undefined in this case).

    Args:
        mask: bool (H, W).

    Returns:
        int64 (2, 2): a point a row, x then y.

    Raises:
        ValueError: the mask is empty or not two-dimensional.
    """
    left, top, right, bottom = (int(value) for value in mask_box(mask))
    # One pixel around the box, where the image goes on, holds the nearest background of every pixel of the mask.
    left, top = max(left - 1, 0), max(top - 1, 0)
    inside = mask[top : bottom + 2, left : right + 2].astype(bool)
    depth = _squared_depth(inside)
    ys, xs = np.nonzero(inside)
    depths = depth[ys, xs]
    first = int(depths.argmax())
    distance = np.sqrt((xs - xs[first]) ** 2 + (ys - ys[first]) ** 2)
    far = distance > np.median(distance)
    second = int(np.where(far, depths, -1).argmax()) if far.any() else _near_centroid(xs, ys, depths)
    return np.array([[xs[first] + left, ys[first] + top], [xs[second] + left, ys[second] + top]], dtype=np.int64)


def target_from_mask(mask: np.ndarray) -> Target:
    """The target that a mask stands for: its tight box and representative points, in the mask's own pixels.

    Args:
        mask: bool (H, W).

    Raises:
        ValueError: the mask is empty or not two-dimensional.
    """
    (x1, y1), (x2, y2) = representative_points(mask).astype(float).tolist()
    return Target(mask_box(mask), ((x1, y1), (x2, y2)))


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO run-length encoding of a mask.

    Args:
        mask: bool (H, W).

    Returns:
        `{"size": [H, W], "counts": str}`, ready for JSON.

    Raises:
        ValueError: the mask is not two-dimensional.
    """
    from pycocotools import mask as coco

    if mask.ndim != 2:
        raise ValueError(f"a mask must be (H, W), got shape {mask.shape}")
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """Mask of a COCO run-length encoding.

    Args:
        rle: `{"size": [H, W], "counts": …}`, where counts are compressed (str or bytes) or a list of run lengths.

    Returns:
        bool (H, W).

    Raises:
        ValueError: a key is missing, or the runs do not fill the size; one line.
    """
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= rle.keys():
        raise ValueError('an RLE mask must be an object with "size" and "counts"')
    size, counts = rle["size"], rle["counts"]
    if not isinstance(size, (list, tuple)) or len(size) != 2 or any(type(n) is not int or n < 1 for n in size):
        raise ValueError(f"RLE size must be two positive integers [height, width], got {str(size)[:60]}")
    if size[0] * size[1] > MAX_RLE_PIXELS:
        raise ValueError(f"RLE size {size[0]}×{size[1]} is over the limit of {MAX_RLE_PIXELS} pixels")
    runs = _checked_runs(counts) if isinstance(counts, (list, tuple)) else _decompress(counts)
    height, width = size
    if sum(runs) != height * width:
        raise ValueError(f"RLE runs cover {sum(runs)} pixels, the size {height}×{width} needs {height * width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def _checked(mask: np.ndarray) -> np.ndarray:
    if mask.ndim != 2:
        raise ValueError(f"a mask must be (H, W), got shape {mask.shape}")
    if not mask.any():
        raise ValueError("the mask is empty")
    return mask


def _squared_depth(inside: np.ndarray) -> np.ndarray:
    """Squared distance of every pixel to the nearest background, int64 (H, W); exact up to distances of 2000 px."""
    try:
        import cv2
    except ImportError:
        raise ImportError("representative_points needs OpenCV: pip install opencv-python-headless") from None
    padding = 1 if inside.all() else 0
    image = np.pad(inside, padding).astype(np.uint8)
    depth = cv2.distanceTransform(image, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float64)
    squared = np.rint(depth**2).astype(np.int64)  # OpenCV's float32 roots would break ties at random
    return squared[1:-1, 1:-1] if padding else squared


def _near_centroid(xs: np.ndarray, ys: np.ndarray, depths: np.ndarray) -> int:
    """Index of the deepest pixel within ±10 px of the centroid, else of the pixel nearest to the centroid."""
    x, y = int(xs.mean()), int(ys.mean())
    near = np.maximum(np.abs(xs - x), np.abs(ys - y)) <= CENTROID_WINDOW
    if near.any():
        return int(np.where(near, depths, -1).argmax())
    return int(((xs - x) ** 2 + (ys - y) ** 2).argmin())


def _checked_runs(counts: list[Any] | tuple[Any, ...]) -> list[int]:
    if any(type(n) is not int or n < 0 for n in counts):
        raise ValueError("RLE counts must be whole numbers of 0 or more")
    return list(counts)


def _decompress(counts: object) -> list[int]:
    """Run lengths of COCO's compressed counts: 6-bit characters, low bits first, each run less the one two before.

    pycocotools reads beyond its buffers when such a string is damaged, so the string is read here.
    """
    if isinstance(counts, str):
        try:
            counts = counts.encode("ascii")
        except UnicodeEncodeError:
            raise ValueError("RLE counts hold characters that COCO's encoding does not use") from None
    if not isinstance(counts, (bytes, bytearray)):
        raise ValueError(f"RLE counts must be a string or a list, got {type(counts).__name__}")
    runs: list[int] = []
    value = shift = 0
    for byte in counts:
        code = byte - 48
        if not 0 <= code < 64 or shift > 30:
            raise ValueError("RLE counts hold characters that COCO's encoding does not use")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            raise ValueError("RLE counts hold a negative run")
        value = shift = 0
    if shift:
        raise ValueError("RLE counts end in the middle of a run")
    return runs
