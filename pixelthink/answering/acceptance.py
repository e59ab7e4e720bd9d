"""Which responses a protocol can segment, and where it sends the segmenter.

- `"pixelthink"`, ours: every number has to be there and finite; objects are cut at the image's edges.
- `"segzero"`, the released evaluation (Seg-Zero, `evaluation_scripts/evaluation.py` and, for lists of objects,
  `evaluation_visionreasoner.py`): numeric strings and fractions are truncated by `int()`, keys need only contain "bbox"
  and "points", `<think>` must hold something and no "<", corners are rounded, and nothing is cut at the edges.

An answer that a rule refuses gets an empty mask and the reason. No answer is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from pixelthink.failures import Cause, Flaw
from pixelthink.geometry import (
    Box,
    CoordinateFrame,
    Point,
    Target,
    box_is_outside,
    box_reaches_beyond,
    clip_target,
    point_in_box,
)
from pixelthink.parsing import Answer, Failure, answer_list_json, single_answer_json
from pixelthink.types import Prompt

Acceptance = Literal["pixelthink", "segzero"]
"""A rule by its name."""

_RELEASED_THINK = re.compile(r"<think>[^<]+</think>")
_LARGEST = 3e38
"""Coordinates beyond have no float32 number, so that SAM 2 gives an empty mask in the released script."""


@dataclass(frozen=True)
class AnsweredObjects:
    """What an answer says, in original pixels.

    Attributes:
        objects: The objects; none where the answer cannot be used, or says that there is none.
        points_per_object: How many of an object's two points were answered.
        failure: Why the answer cannot be segmented, or None.
        detail: More about the failure, on one line, or None.
        flaws: What is odd about it.
    """

    objects: tuple[Target, ...] = ()
    points_per_object: Literal[1, 2] = 2
    failure: Cause | None = None
    detail: str | None = None
    flaws: tuple[Flaw, ...] = ()


class _Refused(Exception):
    """Raised with a `Failure` where the released script would have raised."""


def answered_objects(prompt: Prompt, text: str, answer: Answer, acceptance: Acceptance) -> AnsweredObjects:
    """The objects that a response answers, in original pixels.

    Args:
        prompt: The question; has the frame and the style of the answer.
        text: The whole response.
        answer: `text`, parsed.
        acceptance: The rule.
    """
    if acceptance == "segzero":
        return _released_objects(prompt, text, answer)
    return checked_objects(prompt, answer)


def checked_objects(prompt: Prompt, answer: Answer) -> AnsweredObjects:
    """The rule `"pixelthink"`: maps the objects to original pixels and cuts them at the image's edges.

    A box that lies wholly outside has no pixel to be segmented: it is left out, and where no other box is left, the
    answer has failed.
    """
    count: Literal[1, 2] = 1 if answer.objects else 2
    if answer.failure is not None:
        return AnsweredObjects(points_per_object=count, failure=answer.failure)
    written = [(o.box_xyxy, (o.point_xy, o.point_xy)) for o in answer.objects]
    if not written and answer.box_xyxy is not None and answer.points_xy is not None:
        written = [(answer.box_xyxy, (answer.points_xy[0], answer.points_xy[-1]))]
    size, inside, flaws = prompt.sample.image.size, list[Target](), set[Flaw]()
    for box, points in written:
        target = Target(cast("Box", box), cast("tuple[Point, Point]", points))
        in_pixels = prompt.frame.target_to_original(target)
        if box_is_outside(in_pixels.box_xyxy, *size):
            flaws.add("object_outside_image")
            continue
        if not all(point_in_box(point, target.box_xyxy) for point in target.points_xy):
            flaws.add("points_off_box")
        if box_reaches_beyond(target.box_xyxy, *prompt.frame.answer_size):
            flaws.add("box_beyond_image")
        inside.append(clip_target(in_pixels, *size))
    if written and not inside:
        return AnsweredObjects(points_per_object=count, failure="box_outside_image")
    return AnsweredObjects(tuple(inside), count, flaws=tuple(sorted(flaws)))


def _released_objects(prompt: Prompt, text: str, answer: Answer) -> AnsweredObjects:
    """The rule `"segzero"`."""
    several, frame = prompt.answer_style == "visionreasoner", prompt.frame
    count: Literal[1, 2] = 1 if several else 2
    try:
        written = _released_list(text, answer, frame) if several else (_released_single(text, answer, frame),)
        objects = tuple(target for target in written if _is_finite(target))
        if written and not objects:
            raise _Refused("not_finite")
    except _Refused as refused:
        failure: Failure = refused.args[0]
        detail = "" if answer.failure is not None else ", which the rule pixelthink would have read"
        return AnsweredObjects((), count, failure, f"refused by the released rule of segzero{detail}")
    size, flaws = prompt.sample.image.size, set[Flaw](["object_outside_image"] if len(objects) < len(written) else [])
    for target in objects:
        if not all(point_in_box(point, target.box_xyxy) for point in target.points_xy):
            flaws.add("points_off_box")
        if box_is_outside(target.box_xyxy, *size):
            flaws.add("object_outside_image")
        elif box_reaches_beyond(target.box_xyxy, *size):
            flaws.add("box_beyond_image")
    return AnsweredObjects(objects, count, flaws=tuple(sorted(flaws)))


def _released_single(text: str, answer: Answer, frame: CoordinateFrame) -> Target:
    """One object, as `extract_bbox_points_think` of the released `evaluation.py` reads it."""
    data = single_answer_json(text)
    if data is None:
        raise _Refused(answer.failure or "invalid_json")
    box_key = next((key for key in data if "bbox" in key.lower()), None)
    point_keys = [key for key in data if "points" in key.lower()][:2]
    if box_key is None or len(point_keys) < 2:
        raise _Refused("missing_key")
    x1, y1, x2, y2 = _pixels(_items(data[box_key], 4, exactly=True), frame, _truncated)
    points = [_pixels(_items(data[key], 2), frame, _truncated) for key in point_keys]
    if not _RELEASED_THINK.search(text):
        raise _Refused("no_think")
    return Target((x1, y1, x2, y2), ((points[0][0], points[0][1]), (points[1][0], points[1][1])))


def _released_list(text: str, answer: Answer, frame: CoordinateFrame) -> tuple[Target, ...]:
    """A list of objects, as the released `evaluation_visionreasoner.py` reads it; `<think>` may be missing."""
    data = answer_list_json(text)
    if data is None:
        raise _Refused(answer.failure or "invalid_json")
    if not isinstance(data, list | dict | str):
        raise _Refused("not_a_list")
    objects = []
    for item in data:  # of an object or a text, the script takes keys or letters, none of which has a box
        if not isinstance(item, dict) or not {"bbox_2d", "point_2d"} <= item.keys():
            raise _Refused("missing_key")
        x1, y1, x2, y2 = _pixels(_items(item["bbox_2d"], 4), frame, _rounded_half_up)
        x, y = _pixels(_items(item["point_2d"], 2), frame, _rounded_half_up)
        objects.append(Target((x1, y1, x2, y2), ((x, y), (x, y))))
    return tuple(objects)


def _items(value: Any, count: int, *, exactly: bool = False) -> Sequence[Any]:
    """The first `count` entries of a list or, as the released code reads them too, letters of a text."""
    if not isinstance(value, list | str):
        raise _Refused("not_a_list")
    if len(value) < count or (exactly and len(value) != count):
        raise _Refused("wrong_length")
    return value[:count]


def _pixels(values: Sequence[Any], frame: CoordinateFrame, scaled: Callable[[Any, float], int]) -> list[float]:
    """Answer coordinates x, y, x, y, … in original pixels; the factor is divided as there (`img_width / 840`)."""
    factors = [pixels / units for pixels, units in zip(frame.original_size, frame.answer_size, strict=True)]
    found = []
    for place, value in enumerate(values):
        try:
            pixel = scaled(value, factors[place % 2])
        except (TypeError, ValueError):
            raise _Refused("not_finite" if isinstance(value, float) else "not_a_number") from None
        except OverflowError:
            raise _Refused("not_finite") from None
        found.append(float(pixel) if abs(pixel) <= _LARGEST else math.inf)
    return found


def _truncated(value: Any, factor: float) -> int:
    """As `evaluation.py` has it: numeric strings count, and fractions are cut off before the scaling."""
    return round(int(value) * factor)


def _rounded_half_up(value: Any, factor: float) -> int:
    """As `evaluation_visionreasoner.py` has it; a string does not count."""
    return int(value * factor + 0.5)


def _is_finite(target: Target) -> bool:
    return all(math.isfinite(value) for value in (*target.box_xyxy, *target.points_xy[0], *target.points_xy[1]))
