"""`solution` strings of the released training rows → `Target`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from pixelthink.errors import UserError
from pixelthink.geometry import Target

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_PAIR = rf"\({_NUMBER},{_NUMBER}\)"
_SOLUTION = re.compile(rf"\s*<box>{_PAIR}\s*,\s*{_PAIR}</box>\s*<points>{_PAIR}\s*,\s*{_PAIR}</points>\s*")


def parse_solution(text: str) -> Target:
    """Reads `<box>(x1,y1),(x2,y2)</box><points>(x,y),(x,y)</points>` (Seg-Zero and PixelThink training rows).

    Raises:
        UserError: if the text has another form or the box is inside out.
    """
    match = _SOLUTION.fullmatch(text)
    if match is None:
        raise UserError("solution is not <box>(x1,y1),(x2,y2)</box><points>(x,y),(x,y)</points>")
    numbers = [float(number) for number in match.groups()]
    return _target(numbers[:4], numbers[4:])


def written_solution(targets: Sequence[Target], style: str) -> str:
    """The targets as the training rows of an answer style write them; what `parse_solution` and the like read.

    Args:
        targets: In answer coordinates; exactly one in style "single".
        style: See `pixelthink.parsing.parse_completion`.
    """
    if style == "visionreasoner":
        objects = [{"bbox_2d": list(t.box_xyxy), "point_2d": list(t.points_xy[0])} for t in targets]
        return json.dumps(objects)
    (target,) = targets
    x1, y1, x2, y2 = (_plain(value) for value in target.box_xyxy)
    (ax, ay), (bx, by) = ((_plain(x), _plain(y)) for x, y in target.points_xy)
    return f"<box>({x1},{y1}),({x2},{y2})</box><points>({ax},{ay}),({bx},{by})</points>"


def _plain(value: float) -> str:
    """A number without an exponent, whole where it is whole; reads back as it was to 1e-9."""
    return str(int(value)) if value == int(value) else f"{value:.9f}"


def parse_objects_solution(text: str) -> tuple[Target, ...]:
    """Reads `[{"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}, …]` (VisionReasoner rows); `[]` means no target.

    The one point of an object becomes both points of its target.

    Raises:
        UserError: if the text is no such list, or a box is inside out; says which object.
    """
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError('solution is not JSON, expected a list of {"bbox_2d": […], "point_2d": […]}') from None
    if not isinstance(items, list):
        raise UserError('solution is not a list of {"bbox_2d": […], "point_2d": […]}')
    targets = []
    for number, item in enumerate(items, start=1):
        try:
            targets.append(_target(_numbers(item, "bbox_2d", 4), _numbers(item, "point_2d", 2) * 2))
        except ValueError as error:
            raise UserError(f"solution, object {number}: {error}") from None
    return tuple(targets)


def _numbers(item: Any, key: str, length: int) -> list[float]:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, list) or len(value) != length:
        raise UserError(f"{key} is not a list of {length}")
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not abs(v) < 1e9 for v in value):
        raise UserError(f"{key} holds something that is no usable number")
    return [float(v) for v in value]


def _target(box: list[float], points: list[float]) -> Target:
    (x1, y1, x2, y2), (ax, ay, bx, by) = box, points
    if not all(math.isfinite(v) for v in (*box, *points)):
        raise UserError("solution holds a number that is not finite")
    if x2 < x1 or y2 < y1:
        raise UserError(f"solution's box {(x1, y1, x2, y2)} is inside out")
    return Target((x1, y1, x2, y2), ((ax, ay), (bx, by)))
