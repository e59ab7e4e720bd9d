"""The released evaluation and reward, written down a second time from their scripts, against ours on broken answers.

The functions here read as the released ones do, `re` and bare exceptions included: PixelThink 052d9de
`verl/utils/reward_score/seg_pixelthink.py`, Seg-Zero 42a3345 `evaluation_scripts/evaluation.py` and
`evaluation_visionreasoner.py`.
"""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixelthink.answering.acceptance import AnsweredObjects, answered_objects
from pixelthink.answering.segmenting import segment_answers
from pixelthink.data.solution import parse_solution
from pixelthink.geometry import CoordinateFrame, Target
from pixelthink.parsing import parse_completion
from pixelthink.rewards.format import AnswerFormat, ThinkFormat
from pixelthink.rewards.localization import BoxIoU, BoxL1, PointL1, released_box_iou
from pixelthink.rewards.vision_reasoner import VisionReasonerReward
from pixelthink.segmenters.sam2 import SAM2
from pixelthink.types import Completion, Prompt, Sample, ScoringCase

WIDTH, HEIGHT = 333, 250
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
SOLUTION = "<box>(100,120),(300,420)</box><points>(150,200),(220,330)</points>"
TARGET = parse_solution(SOLUTION)


def a_prompt(style: str = "single", size: tuple[int, int] = (840, 840)) -> Prompt:
    frame = CoordinateFrame((WIDTH, HEIGHT), size)
    return Prompt(Sample("a", IMAGE, "q"), (), IMAGE, frame, (), answer_style=style)


# Texts: honest answers, then one to three things done to them that models do.

NUMBERS = (
    "0", "1", "12", "840", "839.99", "-3", "1e3", "1e400", "NaN", "Infinity", "true", "null", '"12"', '" 7 "', '"3.5"',
    '"x"', '"1_0"', "[1]", "{}", "1" + "0" * 30, "1" + "0" * 400, "3e38", "4e38", '"١٢"', "0.5", "2.5",
)  # fmt: skip
WHOLE = (
    "null",
    "[]",
    "{}",
    '"1234"',
    '"12"',
    "[1, 2, 3]",
    "[1, 2, 3, 4, 5]",
    "7",
    "[[1, 2], [3, 4]]",
    '["a", "b", "c", "d"]',
)
KEYS = ("bbox", "BBox_2d", "the bbox", "points_1", "points_2", "Points", "points_3", "point_1", "box", "bbox2", "")
WRAPS = (
    "{0}", "<answer>{0}</answer>", "<think>why</think>{0}", "<think></think><answer>{0}</answer>",
    "<think>a < b</think>\n<answer>{0}</answer>", "<think>one</think>  <answer>{0}</answer>",
    "<think>{0}</think><answer>{0}</answer>", "<think>x</think><answer>{{}}</answer>{0}",
    "x<think>y</think><answer>{0}</answer>", "<think>x</think><answer>{0}</answer> more",
    "<think>a\nb</think>\n\n<answer>{0}\n</answer>", "<think><think>z</think>{0}",
    "<think>x</think></think><answer>{0}</answer>", "<answer>\u00a0{0}\u2003</answer>",
    "<think>x</think><answer>{{{0}</answer>", "<think>x</think><answer>{0}", "",
)  # fmt: skip


TRUE_OBJECTS = (
    {"bbox_2d": [100, 120, 300, 420], "point_2d": [150, 200]},
    {"bbox_2d": [500, 20, 700, 90], "point_2d": [600, 50]},
)


def numbers(rng: random.Random, count: int) -> str:
    if rng.random() < 0.15:
        return rng.choice(WHOLE)
    count += rng.choice([0] * 12 + [-1, 1])
    honest = [str(rng.randint(0, 840)) for _ in range(count)]
    if rng.random() < 0.4 and honest:
        honest[rng.randrange(len(honest))] = rng.choice(NUMBERS)
    return "[" + ",".join(honest) + "]"


def near(rng: random.Random, values: list[int]) -> str:
    """Numbers close to the true ones, so that terms are often paid."""
    return "[" + ",".join(str(v + rng.choice([0, 0, 1, -1, 9, -11, 60])) for v in values) + "]"


def single_text(rng: random.Random) -> str:
    keys = ["bbox", "points_1", "points_2"]
    if rng.random() < 0.25:
        keys = [rng.choice(KEYS) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.2:
        rng.shuffle(keys)
    honest = {"bbox": [100, 120, 300, 420], "points_1": [150, 200], "points_2": [220, 330]}
    parts = []
    for key in keys:
        count = 4 if "box" in key.lower() else 2
        close = rng.random() < 0.6 and key in honest
        parts.append(f"{json.dumps(key)}: {near(rng, honest[key]) if close else numbers(rng, count)}")
    body = "{" + ", ".join(parts) + "}"
    if rng.random() < 0.05:
        body = body.replace('"', "'")
    wrap = WRAPS[5] if rng.random() < 0.5 else rng.choice(WRAPS)
    return wrap.format(body)


def list_text(rng: random.Random) -> str:
    items = []
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        keys = ["bbox_2d", "point_2d"] if rng.random() < 0.85 else [rng.choice(["bbox_2d", "point_2d", "bbox"])]
        honest, close = rng.choice(TRUE_OBJECTS), rng.random() < 0.6
        pairs = [
            f'"{key}": {near(rng, honest[key]) if close and key in honest else numbers(rng, 4 if "box" in key else 2)}'
            for key in keys
        ]
        items.append("{" + ", ".join(pairs) + "}" if rng.random() < 0.95 else rng.choice(WHOLE))
    body = (
        rng.choice(["{}", '"ab"', '""', "7", "null", "true"]) if rng.random() < 0.08 else "[" + ", ".join(items) + "]"
    )
    wrap = WRAPS[5] if rng.random() < 0.6 else rng.choice(WRAPS)
    return wrap.format(body)


# The released scripts.


def script_single(text: str, x: float, y: float) -> tuple[list[int], list[list[int]]]:
    """Box and points of `evaluation.py`; raises whatever it raises."""
    found = re.search(r"{[^}]+}", text)
    if found:
        data = json.loads(found.group(0))
        names = [name for name in data if "bbox" in name.lower()][:1]
        if names and len(data[names[0]]) == 4:
            raw = data[names[0]]
            box = [round(int(raw[i]) * (x if i % 2 == 0 else y)) for i in range(4)]
        names = [name for name in data if "points" in name.lower()][:2]
        if len(names) == 2:
            points = [[round(int(data[n][0]) * x), round(int(data[n][1]) * y)] for n in names]
    think = re.search(r"<think>([^<]+)</think>", text)
    if think:
        reasoning = think.group(1)
    return box, points, reasoning  # type: ignore[return-value]  # unbound where something was missing


def script_list(text: str, x: float, y: float) -> tuple[list[list[int]], list[list[int]]]:
    """Boxes and points of `evaluation_visionreasoner.py`; raises whatever it raises."""
    found = re.search(r"<answer>\s*(.*?)\s*</answer>", text, re.DOTALL)
    if found:
        data = json.loads(found.group(1))
        boxes = [[int(item["bbox_2d"][i] * (x if i % 2 == 0 else y) + 0.5) for i in range(4)] for item in data]
        points = [[int(item["point_2d"][i] * (x if i == 0 else y) + 0.5) for i in range(2)] for item in data]
    return boxes, points


def usable(values: Any) -> bool:
    """Whether the released script gets a mask for these numbers; beyond float32 they are infinite, and it is empty."""
    return bool(np.isfinite(torch.as_tensor(values, dtype=torch.float).numpy()).all())


def script_objects(text: str, style: str, size: tuple[int, int]) -> tuple[Target, ...] | None:
    """What the scripts hand to SAM 2; None where they count the answer as failed."""
    x, y = WIDTH / size[0], HEIGHT / size[1]
    try:
        if style == "single":
            box, points = script_single(text, x, y)[:2]
            found = [(box, points)]
        else:
            found = [(box, [point, point]) for box, point in zip(*script_list(text, x, y), strict=True)]
        kept = [(box, points) for box, points in found if usable(box) and usable(points)]
        if found and not kept:
            return None
        found = kept
    except Exception:
        return None
    return tuple(_target(box, points) for box, points in found)


def _target(box: Any, points: Any) -> Target:
    first, second = (tuple(map(float, point)) for point in points)
    return Target(tuple(map(float, box)), (first, second))


@pytest.mark.parametrize("size", [(840, 840), (112, 448)])
@pytest.mark.parametrize(("style", "make"), [("single", single_text), ("visionreasoner", list_text)])
def test_segzero_reads_what_the_released_scripts_read(style: str, make: Any, size: tuple[int, int]) -> None:
    rng = random.Random(len(style) + size[0])
    prompt, read = a_prompt(style, size), 0
    for _ in range(2000):
        text = make(rng)
        expected = script_objects(text, style, size)
        answered = answered_objects(prompt, text, parse_completion(text, style), "segzero")
        assert (answered.failure is None) == (expected is not None), text
        assert answered.objects == (expected or ()), text
        assert (answered.detail is None) == (answered.failure is None)
        read += expected is not None
    assert 400 < read < 1800  # both kinds are there


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("<answer>{0}</answer>", "no_think"),
        ("<think></think><answer>{0}</answer>", "no_think"),
        ("<think>a < b</think><answer>{0}</answer>", "no_think"),
        ("<think>a</think><answer></answer>", "no_json"),
        ("<think>a</think><answer>{1}</answer>", "not_a_number"),
    ],
)
def test_the_rule_that_refused_an_answer_is_named(text: str, failure: str) -> None:
    good = '{"bbox": [1, 2, 30, 40], "points_1": [5, 6], "points_2": [7, 8]}'
    bad = good.replace("30", '"x"')
    answer = text.format(good, bad)
    found = answered_objects(a_prompt(), answer, parse_completion(answer), "segzero")
    assert found.failure == failure
    assert found.detail is not None
    assert found.detail.startswith("refused by the released rule of segzero")
    assert ("pixelthink would have read" in found.detail) == (failure == "no_think")


def test_numeric_strings_fractions_and_other_keys_are_read_as_released() -> None:
    text = '<think>a</think>{"my BBox": ["84", 168.9, true, 420], "points a": "12", "points b": [840, 841]}'
    found = answered_objects(a_prompt(), text, parse_completion(text), "segzero")
    x, y = WIDTH / 840, HEIGHT / 840
    box = (round(84 * x), round(168 * y), round(1 * x), round(420 * y))
    points = ((round(1 * x), round(2 * y)), (round(840 * x), round(841 * y)))
    assert found == AnsweredObjects((Target(box, points),), 2, flaws=found.flaws)


@pytest.mark.slow
def test_masks_are_those_of_the_released_script(tmp_path: Path) -> None:
    """SAM 2 (random weights) by the library's own predictor, called as the script calls it, against our segmenter."""
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    torch.manual_seed(0)
    model = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu")
    torch.save({"model": model.state_dict()}, tmp_path / "sam2.pt")
    ours = SAM2(str(tmp_path / "sam2.pt"), autocast="bfloat16", batch_objects=1)
    ours.setup()
    predictor = SAM2ImagePredictor(model)
    rng = random.Random(1)
    texts = [single_text(rng) for _ in range(120)]
    answers = [parse_completion(text) for text in texts]
    completions = [Completion((), (), text, "stop", 0, None) for text in texts]
    predictions = segment_answers([a_prompt()] * len(texts), completions, answers, ours, "segzero")
    segmented = 0
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        predictor.set_image(IMAGE)
        for text, prediction in zip(texts, predictions, strict=True):
            try:
                box, points = script_single(text, WIDTH / 840, HEIGHT / 840)[:2]
                masks, scores, _ = predictor.predict(point_coords=points, point_labels=[1, 1], box=box)
                expected = masks[np.argsort(scores)[::-1]][0].astype(bool)
                segmented += 1
            except Exception:
                expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
            np.testing.assert_array_equal(prediction.mask, expected)
    assert 30 < segmented < 120


# The released reward.


def script_rewards(text: str) -> dict[str, float]:
    """The five terms of `seg_pixelthink.py` for the solution above."""
    box_true, points_true = (100, 120, 300, 420), ((150, 200), (220, 330))

    def attempt(term: Any) -> float:
        try:
            return float(bool(term()))
        except Exception:
            return 0.0

    def data() -> Any:
        return json.loads(re.search(r"{[^}]+}", text).group(0))  # type: ignore[union-attr]

    def box() -> Any:
        value = data()["bbox"]
        if len(value) != 4:
            raise ValueError
        return value

    def answer_format() -> bool:
        found = data()
        return all(
            isinstance(found[key], list) and len(found[key]) == n
            for key, n in (("bbox", 4), ("points_1", 2), ("points_2", 2))
        )

    def iou() -> bool:
        a, b = box(), box_true
        left, top, right, bottom = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
        shared = (right - left + 1) * (bottom - top + 1) if left < right and top < bottom else 0
        areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
        return float(shared) / (areas[0] + areas[1] - shared) > 0.5

    def box_distance() -> bool:
        a = box()
        return (abs(a[0] - 100) + abs(a[1] - 120) + abs(a[2] - 300) + abs(a[3] - 420)) / 4 < 10

    def point_distance() -> bool:
        found, a = data(), box()
        points = [[int(found[key][0]), int(found[key][1])] for key in ("points_1", "points_2")]
        if not all(a[0] <= p[0] <= a[2] and a[1] <= p[1] <= a[3] for p in points):
            return False
        sums = [
            math.sqrt((points[0][0] - s[0]) ** 2 + (points[0][1] - s[1]) ** 2)
            + math.sqrt((points[1][0] - t[0]) ** 2 + (points[1][1] - t[1]) ** 2)
            for s, t in (points_true, points_true[::-1])
        ]
        return min(sums) / 2 < 100

    return {
        "think": attempt(lambda: re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL)),
        "answer": attempt(answer_format),
        "iou": attempt(iou),
        "box": attempt(box_distance),
        "points": attempt(point_distance),
    }


def our_rewards(text: str) -> dict[str, float]:
    case = ScoringCase("a", text, parse_completion(text), (TARGET,))
    terms = {"think": ThinkFormat(), "answer": AnswerFormat(), "iou": BoxIoU(), "box": BoxL1(), "points": PointL1()}
    return {name: term(case) for name, term in terms.items()}


def test_reward_terms_are_the_released_ones_on_broken_answers() -> None:
    rng = random.Random(5)
    paid = dict.fromkeys(script_rewards(""), 0.0)
    for _ in range(4000):
        text = single_text(rng)
        expected = script_rewards(text)
        assert our_rewards(text) == expected, text
        paid = {name: paid[name] + value for name, value in expected.items()}
    assert all(200 < count < 3800 for count in paid.values()), paid


@pytest.mark.parametrize(
    ("bbox", "points", "iou", "box", "distance"),
    [
        ("[true, 120, 300, 420]", "[150, 200]", 1.0, 0.0, 1.0),  # true is 1
        ('["100", 120, 300, 420]', "[150, 200]", 0.0, 0.0, 0.0),
        ("[100, 120, 300, 420]", '["150", "200"]', 1.0, 1.0, 1.0),  # points may be strings
        ("[100.5, 120, 300, 420]", "[100.9, 200]", 1.0, 1.0, 0.0),  # 100.9 becomes 100, which is off the box
        ("[100, 120, 300, 420]", "[1e400, 200]", 1.0, 1.0, 0.0),
    ],
)
def test_the_released_corners_one_by_one(bbox: str, points: str, iou: float, box: float, distance: float) -> None:
    text = f'<think>a</think><answer>{{"bbox": {bbox}, "points_1": {points}, "points_2": [220, 330]}}</answer>'
    expected = {"iou": iou, "box": box, "points": distance}
    assert {name: script_rewards(text)[name] for name in expected} == expected
    assert {name: our_rewards(text)[name] for name in expected} == expected


def test_an_intersection_of_one_pixel_counts_as_none() -> None:
    line = (100, 120, 100, 420)
    assert released_box_iou(line, line) == 0.0
    assert released_box_iou((0, 0, 9, 9), (9, 0, 18, 9)) == 0.0
    assert released_box_iou((0, 0, 9, 9), (8, 0, 17, 9)) == 20 / 180


# The released reward of VisionReasoner, `verl/utils/reward_score/vision_reasoner.py`, pair by pair.


def script_list_format(text: str) -> float:
    total = float(re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL) is not None)
    found, per_object = re.search(r"<answer>\s*(.*?)\s*</answer>", text, re.DOTALL), 0.0
    try:
        data = json.loads(found.group(1))  # type: ignore[union-attr]
        for item in data:
            listed = 0.0
            for key, count in (("bbox_2d", 4), ("point_2d", 2)):
                if key in item:
                    value = item[key]
                    listed += isinstance(value, list) and len(value) == count
            per_object += listed / len(data)
    except Exception:
        return total + per_object
    return total + per_object


def script_list_accuracy(text: str) -> float:
    from scipy.optimize import linear_sum_assignment

    found = re.search(r"<answer>\s*(.*?)\s*</answer>", text, re.DOTALL)
    try:
        data = json.loads(found.group(1))  # type: ignore[union-attr]
        boxes = np.array([item["bbox_2d"] for item in data][:120])
        points = np.array([item["point_2d"] for item in data][:120])
        if boxes.shape != (len(boxes), 4) or points.shape != (len(boxes), 2):
            return 0.0
        misses = np.array([[script_pair(b, p, t) for t in TRUE_OBJECTS] for b, p in zip(boxes, points, strict=True)])
        rows, columns = linear_sum_assignment(misses)
        return float((3.0 - misses[rows, columns]).sum() / max(len(boxes), len(TRUE_OBJECTS)))
    except Exception:
        return 0.0


def script_pair(box: Any, point: Any, truth: dict[str, list[int]]) -> float:
    """3 less the hits of one answered with one true object; one row of the released arrays at a time."""
    a, b = box[None], np.array([truth["bbox_2d"]])
    sides = [np.maximum(0, np.minimum(a[:, i + 2], b[:, i + 2]) - np.maximum(a[:, i], b[:, i]) + 1) for i in (0, 1)]
    areas = [(c[:, 2] - c[:, 0] + 1) * (c[:, 3] - c[:, 1] + 1) for c in (a, b)]
    shared = sides[0] * sides[1]
    hits = float((shared / (areas[0] + areas[1] - shared) > 0.5)[0])
    hits += float(np.mean(np.abs(box - b[0])) < 10)
    near = np.sqrt(np.sum((point - np.array(truth["point_2d"])) ** 2)) < 30
    inside = (point[0] >= box[0]) & (point[0] <= box[2]) & (point[1] >= box[1]) & (point[1] <= box[3])
    return 3.0 - hits - float(near & inside)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_reward_of_several_objects_is_the_released_one_on_broken_answers() -> None:
    rng, reward, paid = random.Random(9), VisionReasonerReward(), 0
    truth = tuple(
        Target(tuple(map(float, o["bbox_2d"])), (tuple(map(float, o["point_2d"])),) * 2)  # type: ignore[arg-type]
        for o in TRUE_OBJECTS
    )
    for _ in range(4000):
        text = list_text(rng)
        parts = reward.score(ScoringCase("a", text, parse_completion(text, "visionreasoner"), truth)).parts
        assert parts["format"] == script_list_format(text), text
        assert parts["accuracy"] == pytest.approx(script_list_accuracy(text), abs=1e-12), text
        paid += parts["accuracy"] > 0
    assert 500 < paid < 3500


@pytest.mark.parametrize(
    ("answer", "shape"),
    [("[5, {0}]", 1.0), ("[null, {0}]", 1.0), ('["bbox_2d", {0}]', 1.0), ('["a", {0}]', 2.0), ("[{0}, 5]", 2.0)],
)
def test_an_entry_that_is_no_object_ends_the_released_sum(answer: str, shape: float) -> None:
    text = f"<think>a</think><answer>{answer.format(json.dumps(TRUE_OBJECTS[0]))}</answer>"
    assert script_list_format(text) == shape
    case = ScoringCase("a", text, parse_completion(text, "visionreasoner"), ())
    assert VisionReasonerReward().score(case).parts["format"] == shape
