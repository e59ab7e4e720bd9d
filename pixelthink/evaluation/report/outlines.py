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
    """The outline of a mask with its holes as the `d` of an SVG path, for `fill-rule="evenodd"`.

    Args:
        mask: bool (H, W).

    Returns:
        Closed polygons in pixels of the mask, from the corner (0, 0) of its first pixel; "" for None or an empty mask.
    """
    import cv2

    if mask is None or not mask.any():
        return ""
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
        corners = (((points + 0.5) * scale).tolist() for points in polygons)
        path = "".join("M" + "L".join(f"{x:.5g} {y:.5g}" for x, y in polygon) + "Z" for polygon in corners)
        if len(path) <= MAX_LENGTH:
            return path
        tolerance *= 2
