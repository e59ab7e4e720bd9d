"""The miniature world: deterministic, disjoint, rated by its rule, and solvable as its reasoning says."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.data.validation import check_sample
from pixelthink.policies.tiny import LEXICON, build_tokenizer
from pixelthink.types import LEVELS, Sample, difficulty_level

SAMPLES = [ShapeScenes("train", size=300)[i] for i in range(300)]


def sightings(sample: Sample) -> dict[str, tuple[str, str]]:
    """Colour → (cell, size), read from the caption."""
    entries = sample.reasoning["caption"].removeprefix("i see ").split(", ")
    return {color: (cell, size) for color, cell, size in (entry.split() for entry in entries)}


def final_color(text: str) -> str:
    return text.rstrip(".").split("it is the ")[-1].split()[0]


def test_a_sample_is_the_same_whenever_it_is_drawn() -> None:
    first, again = ShapeScenes("val", size=5, seed=3)[4], ShapeScenes("val", size=50, seed=3)[4]
    assert (first.question, first.targets, first.reasoning) == (again.question, again.targets, again.reasoning)
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert ShapeScenes("val", size=5, seed=4)[4].question != first.question or (
        ShapeScenes("val", size=5, seed=4)[4].targets != first.targets
    )


def test_no_image_occurs_in_two_splits() -> None:
    images = {split: {ShapeScenes(split, size=300)[i].image.tobytes() for i in range(300)} for split in ("val", "test")}
    images["train"] = {sample.image.tobytes() for sample in SAMPLES}
    assert not images["train"] & images["val"]
    assert not images["train"] & images["test"]
    assert not images["val"] & images["test"]


def test_difficulty_follows_the_level_and_meets_every_budget_branch() -> None:
    ranges = {"easy": (7 / 3, 3.0), "medium": (11.5 / 3, 4.5), "hard": (5.0, 17 / 3)}
    for sample in SAMPLES:
        check_sample(sample)
        assert sample.difficulty is not None
        low, high = ranges[sample.meta["level"]]
        assert low <= sample.difficulty <= high
        assert difficulty_level(sample.difficulty) == sample.meta["level"]
    assert {sample.meta["level"] for sample in SAMPLES} == set(LEVELS)


def test_every_trail_leads_where_its_reasoning_says() -> None:
    trails = [sample for sample in SAMPLES if "trail" in sample.question]
    assert len(trails) > 80
    for sample in trails:
        start, hops = re.search(r"from (\w+) ends after (\d) steps", sample.question).groups()  # type: ignore[union-attr]
        follow = dict(link.split() for link in sample.question.split(": ")[1].split(", "))
        assert len(follow) == 6
        color = start
        for _ in range(int(hops)):
            color = follow[color]
        assert color == final_color(sample.reasoning["steps"])
        assert color != start


def test_comparisons_and_lookups_have_one_answer() -> None:
    for sample in SAMPLES:
        seen, answer = sightings(sample), final_color(sample.reasoning["brief"])
        sizes = {color: ("small", "medium", "large").index(size) for color, (_, size) in seen.items()}
        keys = {
            "largest": {color: -size for color, size in sizes.items()},
            "smallest": sizes,
            "leftmost": {color: ord(cell[0]) for color, (cell, _) in seen.items()},
            "rightmost": {color: -ord(cell[0]) for color, (cell, _) in seen.items()},
            "highest": {color: int(cell[1]) for color, (cell, _) in seen.items()},
            "lowest": {color: -int(cell[1]) for color, (cell, _) in seen.items()},
        }
        word = sample.question.split()[1]
        if sample.meta["level"] == "easy":
            assert answer == word
        elif sample.meta["level"] == "medium":
            assert [c for c, key in keys[word].items() if key == min(keys[word].values())] == [answer]


def test_the_mask_is_the_answered_colour() -> None:
    from pixelthink.data.sources.shape_scenes import COLORS

    for sample in SAMPLES[:100]:
        pixels = np.asarray(sample.image)[sample.mask]
        assert (pixels == COLORS[final_color(sample.reasoning["brief"])]).all()
        cell, size = sightings(sample)[final_color(sample.reasoning["brief"])]
        x1, y1, x2, y2 = sample.targets[0].box_xyxy
        assert ("abcd".index(cell[0]), int(cell[1]) - 1) == ((x1 + x2) // 56, (y1 + y2) // 56)
        assert x2 - x1 + 1 == {"small": 10, "medium": 16, "large": 22}[size]


def test_each_word_of_the_world_is_one_token() -> None:
    tokenizer = build_tokenizer(LEXICON, 112)
    for sample in SAMPLES[:50]:
        for text in (sample.question, *sample.reasoning.values()):
            words = re.findall(r"[a-z]+\d?|\d+|[^\w\s]", text)
            spaces_before_numbers = len(re.findall(r" \d", text))
            assert len(tokenizer.encode(text, add_special_tokens=False)) == len(words) + spaces_before_numbers, text
            assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("index", [-1, 300])
def test_an_index_outside_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match="ShapeScenes has 300 samples"):
        ShapeScenes(size=300)[index]


def test_levels_come_by_their_odds() -> None:
    count = 500
    source = ShapeScenes(size=count, odds=(0.2, 0.5, 0.3))
    found = [source[i].meta["level"] for i in range(count)]
    for level, share in zip(LEVELS, (0.2, 0.5, 0.3), strict=True):
        assert abs(found.count(level) - share * count) < 4 * (count * share * (1 - share)) ** 0.5
    with pytest.raises(ValueError, match="odds must be positive"):
        ShapeScenes(odds=(1.0, 0.0, 1.0))
