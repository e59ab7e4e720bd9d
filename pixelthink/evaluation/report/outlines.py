"""Masks as outlines: paths of an SVG whose units are pixels of the original image."""

from __future__ import annotations

import numpy as np

FINE, COARSE = 600, 1200
"""Outlines are followed on a mask whose longer side has at least and at most these many pixels."""
TOLERANCE = 0.8
"""How far in such pixels an outline may leave the mask's edge; farther, where it would be longer than `MAX_LENGTH`."""
MAX_LENGTH = 20_000
"""Characters of a path."""
MAX_PARTS = 150
"""Parts and holes of a mask beyond these many, the smallest, are not drawn."""


def mask_path(mask: np.ndarray | None) -> str:
    """The outline of a mask as the `d` of an SVG path, for `fill-rule="evenodd"`; "" for no mask and an empty one."""
    return "" if mask is None or not mask.any() else outline(mask)


def outline(mask: np.ndarray) -> str:
    """The outline of a mask with its holes.

    Args:
        mask: bool (H, W), not empty.

    Returns:
        Closed polygons in pixels of the mask, whose corner (0, 0) is that of its first pixel.
    """
    import cv2

    height, width = mask.shape
    longer = max(height, width)
    factor = -(-FINE // longer) if longer < FINE else min(1.0, COARSE / longer)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    scaled = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    found, _ = cv2.findContours(scaled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    largest = sorted(found, key=lambda contour: -len(contour))[:MAX_PARTS]
    scale = np.array([width / size[0], height / size[1]])
    tolerance = TOLERANCE
    while True:
        polygons = [cv2.approxPolyDP(contour, tolerance, closed=True)[:, 0] for contour in largest]
        path = "".join(_polygon((points + 0.5) * scale) for points in polygons)
        if len(path) <= MAX_LENGTH:
            return path
        tolerance *= 2


def _polygon(points: np.ndarray) -> str:
    return "M" + "L".join(f"{x:.5g} {y:.5g}" for x, y in points.tolist()) + "Z"
