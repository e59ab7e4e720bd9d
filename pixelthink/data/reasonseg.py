"""The annotation format of ReasonSeg (LISA, arXiv 2308.00692): labelled polygons → target and ignored pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pixelthink.errors import FileError

MAX_COORDINATE = 1e6
TARGET, IGNORE = 1, 2


def rasterize(annotation: Mapping[str, Any], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the shapes of a ReasonSeg annotation.

    A shape with "ignore" in its label (any case) is ignored, one labelled "flag" is skipped, any other is target. A
    polygon is its outline plus its filling, with coordinates cut to whole pixels. Shapes are painted largest first, so
    that smaller ones overwrite (`get_mask_from_json` in utils/data_processing.py of dvlab-research/LISA).

    Args:
        annotation: The parsed JSON, of which only `shapes[{label, points}]` is read.
        height: Height of the image.
        width: Width of the image.

    Returns:
        `(target, ignore)`, each bool (height, width), disjoint.

    Raises:
        FileError: shapes that are not of this form, or a polygon with fewer than 3 points (a skipped shape may have
            any). One line that names the shape.
    """
    shapes = annotation.get("shapes")
    if not isinstance(shapes, list):
        raise FileError('the annotation has no list of "shapes"')
    painted: list[tuple[np.ndarray, int]] = []
    for number, shape in enumerate(shapes):
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise FileError(f"shape {number} has no label")
        if (label := shape["label"].lower()) == "flag":
            continue
        try:
            mask = _paint(shape.get("points"), height, width)
        except ValueError as error:
            raise FileError(f"shape {number} ({shape['label']}): {error}") from None
        painted.append((mask, IGNORE if "ignore" in label else TARGET))
    canvas = np.zeros((height, width), dtype=np.uint8)
    # Reversed, as the released reader sorts: of two shapes of equal area, the earlier one is painted last.
    for index in np.argsort([int(mask.sum()) for mask, _ in painted], kind="stable")[::-1]:
        mask, value = painted[index]
        canvas[mask] = value
    return canvas == TARGET, canvas == IGNORE


def read_points(value: object) -> np.ndarray:
    """The points of a shape, float (N, 2).

    Raises:
        FileError: not a list of [x, y], or a coordinate that is not finite or beyond ±1,000,000.
    """
    try:
        points = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 2:
        raise FileError('"points" must be a list of [x, y]')
    if not (np.abs(points) <= MAX_COORDINATE).all():
        raise FileError("a coordinate is not finite or beyond ±1,000,000")
    return points


def _paint(value: object, height: int, width: int) -> np.ndarray:
    """A polygon's outline and filling, bool (height, width)."""
    import cv2

    points = read_points(value)
    if len(points) < 3:
        raise FileError(f"a polygon needs 3 points, got {len(points)}")
    canvas = np.zeros((height, width), dtype=np.uint8)
    polygon = [points.astype(np.int32)]
    cv2.polylines(canvas, polygon, isClosed=True, color=1, thickness=1)
    cv2.fillPoly(canvas, polygon, color=1)
    return canvas.astype(bool)
