"""Completion text → `Answer`: the one parser of reward, metrics and prediction.

Two questions are kept apart, because they have different answers:

* *What does the reward see?* `think_ok`, `answer_ok`, `box_xyxy` and `points_xy` follow the released code (PixelThink,
  released reward): the first `{[^}]+}` of the **whole** response is the answer, and a box counts even where the points
  beside it are missing.
* *Can the segmenter use it?* Only where `failure` is None: every number is there, finite, and the box not inside out.

Nothing here raises on any text, and every step is linear in its length: the released regular expressions backtrack
quadratically on hostile text (`{{{{…`, `<think><think>…`), so they are replaced by searches that accept the same texts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pixelthink.geometry import Box, Point, Target

Failure = Literal[
    "no_think",
    "no_json",
    "no_answer",
    "invalid_json",
    "not_a_list",
    "missing_key",
    "wrong_length",
    "not_a_number",
    "not_finite",
    "empty_box",
]
"""Why an answer cannot be segmented: no readable `<think>…</think>`, where the protocol asks for one; no `{…}` in the
text; no `<answer>…</answer>` around a multi-object answer; text that is no JSON (or nests too deeply, or holds an
integer of thousands of digits); a value that should be a list and is not; a key that is missing; a list of another
length; an entry that is no number; NaN, infinity or a number beyond float32; a box whose second corner lies before its
first."""

Style = Literal["single", "visionreasoner"]
"""How an answer is written: one object with `bbox`, `points_1`, `points_2`, or a list of `bbox_2d`, `point_2d`."""

STYLES: tuple[Style, ...] = ("single", "visionreasoner")

_THINK_TO_ANSWER = re.compile(r"</think>\s*<answer>")


@dataclass(frozen=True)
class AnswerObject:
    """One entry of a multi-object answer (VisionReasoner style).

    Attributes:
        box_xyxy: The box as written, or None where it is not four finite numbers.
        point_xy: The point as written, or None where it is not two finite numbers.
        box_listed: Whether `bbox_2d` is a list of four, whatever it holds; VisionReasoner's format reward asks no more.
        point_listed: Whether `point_2d` is a list of two, whatever it holds.
        failure: Why the entry cannot be segmented, or None.
    """

    box_xyxy: Box | None
    point_xy: Point | None
    box_listed: bool
    point_listed: bool
    failure: Failure | None


@dataclass(frozen=True)
class Answer:
    """A response, parsed; coordinates as the model wrote them.

    Attributes:
        reasoning: Text between the first `<think>` and the next `</think>`, stripped; "" where there is none.
        box_xyxy: The box as written, even where the rest of the answer failed; None where it is not four finite
            numbers. In style "visionreasoner" the first object's.
        points_xy: The points as written (the first two numbers of each); None unless both are there and finite. In
            style "visionreasoner" the first object's one point.
        think_ok: Whether the whole response is `<think>…</think>`, white space, `<answer>…</answer>`.
        answer_ok: Whether the lists are there with their lengths, whatever they hold (PixelThink, released reward).
        failure: Why the answer cannot be segmented, or None.
        objects: The entries of a multi-object answer; empty in style "single". Empty with `failure` None means that the
            model says there is no target.
    """

    reasoning: str
    box_xyxy: Box | None
    points_xy: tuple[Point, ...] | None
    think_ok: bool
    answer_ok: bool
    failure: Failure | None
    objects: tuple[AnswerObject, ...] = ()


def parse_completion(text: str, style: str = "single") -> Answer:
    """Parses one response; never raises on any text, and takes time linear in its length.

    Args:
        text: The whole response.
        style: "single" for PixelThink's one object, "visionreasoner" for a list of objects.

    Raises:
        ValueError: if the style is unknown.
    """
    if style == "single":
        return _parse_single(text)
    if style == "visionreasoner":
        return _parse_objects(text)
    raise ValueError(f"unknown answer style {style!r}; known: {', '.join(STYLES)}")


def answer_list_json(text: str) -> Any:
    """What stands inside the first `<answer>…</answer>` as JSON; None where there is none or it is no JSON."""
    raw = _between(text, "<answer>", "</answer>")
    return None if raw is None else _load_json(raw.strip())


def answer_text(text: str) -> str:
    """What stands inside the first `<answer>…</answer>`, stripped; "" where there is none."""
    return (_between(text, "<answer>", "</answer>") or "").strip()


def single_answer_json(text: str) -> dict[str, Any] | None:
    """The first `{[^}]+}` of the text as JSON: where the released code reads a single object's answer."""
    raw = _first_braces(text)
    data = _load_json(raw) if raw is not None else None
    return data if isinstance(data, dict) else None


def _parse_single(text: str) -> Answer:
    """One object: `{"bbox": [x1, y1, x2, y2], "points_1": [x, y], "points_2": [x, y]}` anywhere in the text."""
    reasoning, think_ok = _reasoning(text), _think_ok(text)
    raw = _first_braces(text)
    data = _load_json(raw) if raw is not None else None
    if not isinstance(data, dict):
        failure: Failure = "no_json" if raw is None else "invalid_json"
        return Answer(reasoning, None, None, think_ok, answer_ok=False, failure=failure)
    box, box_failure = _numbers(data, "bbox", 4)
    first, first_failure = _numbers(data, "points_1", 2)
    second, second_failure = _numbers(data, "points_2", 2)
    box_xyxy = _as_box(box)
    points = (_as_point(first), _as_point(second))
    return Answer(
        reasoning=reasoning,
        box_xyxy=box_xyxy,
        points_xy=(points[0], points[1]) if points[0] is not None and points[1] is not None else None,
        think_ok=think_ok,
        answer_ok=_is_list(data, "bbox", 4) and _is_list(data, "points_1", 2) and _is_list(data, "points_2", 2),
        failure=box_failure or first_failure or second_failure or _box_failure(box_xyxy),
    )


def _parse_objects(text: str) -> Answer:
    """Several objects: `<answer>[{"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}, …]</answer>`."""
    reasoning, think_ok = _reasoning(text), _think_ok(text)
    raw = _between(text, "<answer>", "</answer>")
    data = _load_json(raw.strip()) if raw is not None else None
    if not isinstance(data, list):
        failure: Failure = "no_answer" if raw is None else "invalid_json" if data is None else "not_a_list"
        return Answer(reasoning, None, None, think_ok, answer_ok=False, failure=failure)
    objects = tuple(_parse_object(item) for item in data)
    first = objects[0] if objects else None
    return Answer(
        reasoning=reasoning,
        box_xyxy=first.box_xyxy if first else None,
        points_xy=(first.point_xy,) if first and first.point_xy else None,
        think_ok=think_ok,
        answer_ok=all(o.box_listed and o.point_listed for o in objects),
        failure=next((o.failure for o in objects if o.failure), None),
        objects=objects,
    )


def _parse_object(item: Any) -> AnswerObject:
    """One entry of the list; whatever is no JSON object lacks its keys."""
    data = item if isinstance(item, dict) else {}
    box, box_failure = _numbers(data, "bbox_2d", 4)
    point, point_failure = _numbers(data, "point_2d", 2)
    box_xyxy, point_xy = _as_box(box), _as_point(point)
    return AnswerObject(
        box_xyxy=box_xyxy,
        point_xy=point_xy,
        box_listed=_is_list(data, "bbox_2d", 4),
        point_listed=_is_list(data, "point_2d", 2),
        failure=box_failure or point_failure or _box_failure(box_xyxy),
    )


def _between(text: str, opening: str, closing: str) -> str | None:
    """Text from after the first `opening` to the next `closing`; the regex `opening(.*?)closing` without backtracking.

    Where nothing closes the first opening, nothing closes a later one either.
    """
    start = text.find(opening)
    end = text.find(closing, start + len(opening)) if start >= 0 else -1
    return text[start + len(opening) : end] if end >= 0 else None


def _reasoning(text: str) -> str:
    """What stands inside `<think>`, stripped."""
    return (_between(text, "<think>", "</think>") or "").strip()


def _think_ok(text: str) -> bool:
    r"""Whether `<think>.*?</think>\s*<answer>.*?</answer>` matches the whole text, a dot matching newlines too.

    The first `</think>\s*<answer>` also ends first, so it leaves most room for the rest: no other needs to be tried.
    """
    if not text.startswith("<think>") or not text.endswith("</answer>"):
        return False
    middle = _THINK_TO_ANSWER.search(text, len("<think>"))
    return middle is not None and middle.end() <= len(text) - len("</answer>")


def _first_braces(text: str) -> str | None:
    """The first match of `{[^}]+}`: from the first brace that has something before the next closing one."""
    start = text.find("{")
    while start >= 0:
        end = text.find("}", start + 1)
        if end < 0:
            return None
        if end > start + 1:
            return text[start : end + 1]
        start = text.find("{", end + 1)
    return None


def _load_json(raw: str) -> Any:
    """The JSON value, or None where it is none, nests too deeply or holds an integer too long for Python."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _is_list(data: Mapping[str, Any], key: str, length: int) -> bool:
    """Whether the value is a list of that length, whatever it holds."""
    value = data.get(key)
    return isinstance(value, list) and len(value) == length


def _numbers(data: Mapping[str, Any], key: str, length: int) -> tuple[list[float] | None, Failure | None]:
    """The value as finite numbers, and what is wrong with it.

    A list longer than `length` is wrong, yet its numbers are returned: the released point term reads the first two.
    """
    if key not in data:
        return None, "missing_key"
    value = data[key]
    if not isinstance(value, list):
        return None, "not_a_list"
    if len(value) < length:
        return None, "wrong_length"
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
        return None, "not_a_number"
    try:
        numbers = [float(v) for v in value]
    except OverflowError:
        return None, "not_finite"
    if not all(math.isfinite(v) for v in numbers):
        return None, "not_finite"
    return numbers, "wrong_length" if len(numbers) > length else None


def _as_box(numbers: list[float] | None) -> Box | None:
    """Four numbers as a box; a longer list is none."""
    if numbers is None or len(numbers) != 4:
        return None
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _as_point(numbers: list[float] | None) -> Point | None:
    """The first two numbers as a point."""
    return (numbers[0], numbers[1]) if numbers is not None else None


def _box_failure(box: Box | None) -> Failure | None:
    """Returns "empty_box" where no pixel lies between the corners, both of which belong to the box."""
    return "empty_box" if box is not None and (box[2] < box[0] or box[3] < box[1]) else None


def format_response(reasoning: str, target: Target | None) -> str:
    """The response that parses to a target: what a cold start teaches. Coordinates are rounded to whole numbers.

    Without a target the response is the reasoning alone.
    """
    if target is None:
        return f"<think>{reasoning}</think>"

    def numbers(values: tuple[float, ...]) -> str:
        return "[" + ",".join(str(round(value)) for value in values) + "]"

    first, second = target.points_xy
    answer = f'"bbox": {numbers(target.box_xyxy)}, "points_1": {numbers(first)}, "points_2": {numbers(second)}'
    return f"<think>{reasoning}</think><answer>{{{answer}}}</answer>"
