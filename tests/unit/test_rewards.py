"""Terms and whole rewards: by hand, against the released functions, and as jsonargparse builds them."""

import inspect
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser, lazy_instance

from pixelthink.data.solution import parse_objects_solution, parse_solution
from pixelthink.errors import UserError
from pixelthink.geometry import Target, box_iou
from pixelthink.parsing import parse_completion
from pixelthink.rewards.base import Reward, RewardTerm
from pixelthink.rewards.composite import L1Reward, PixelThinkReward
from pixelthink.rewards.format import ThinkFormat
from pixelthink.rewards.length import L1Exact, L1Max, LengthMode, NoLengthScore, ReleasedBudget, TokenBudget
from pixelthink.rewards.localization import BoxIoU, BoxL1, PointL1, box_l1, paired_point_distance
from pixelthink.rewards.vision_reasoner import VisionReasonerReward, non_repeat
from pixelthink.types import ScoringCase, TokenTarget
from tests.support import golden_rows

TARGET = Target((10.0, 10.0, 19.0, 19.0), ((12.0, 12.0), (16.0, 16.0)))
PERFECT = (
    "<think>one two</think>"
    '<answer>{"bbox": [10, 10, 19, 19], "points_1": [16, 16], "points_2": [12, 12]}</answer>'
)  # fmt: skip


def case(text: str = PERFECT, *, targets: tuple[Target, ...] = (TARGET,), **known: Any) -> ScoringCase:
    style = known.pop("style", "single")
    return ScoringCase("s1", text, parse_completion(text, style), targets, **known)


def answer(bbox: list[float], first: list[float], second: list[float]) -> ScoringCase:
    return case(f'{{"bbox": {bbox}, "points_1": {first}, "points_2": {second}}}')


def test_box_iou_counts_both_corners() -> None:
    assert box_iou((0, 0, 9, 9), (0, 0, 9, 9)) == 1.0
    assert box_iou((0, 0, 9, 9), (5, 0, 14, 9)) == 50 / 150
    assert box_iou((0, 0, 9, 9), (9, 9, 18, 18)) == 1 / 199
    assert box_iou((0, 0, 9, 9), (10, 0, 19, 9)) == 0.0
    assert box_iou((9, 9, 0, 0), (0, 0, 9, 9)) == 0.0


def test_distances() -> None:
    assert box_l1((0, 0, 10, 10), (1, 2, 7, 6)) == 2.5
    assert paired_point_distance(((0, 0), (10, 0)), ((10, 4), (0, 3))) == 3.5


COORDINATE = st.integers(-50, 900).map(float)
BOXES = st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE)


@given(BOXES, BOXES)
def test_box_iou_is_symmetric_and_bounded(first: Any, second: Any) -> None:
    value = box_iou(first, second)
    assert value == box_iou(second, first)
    if first[0] <= first[2] and first[1] <= first[3] and second[0] <= second[2] and second[1] <= second[3]:
        assert 0.0 <= value <= 1.0


def test_terms_at_their_thresholds() -> None:
    assert BoxIoU()(answer([10, 10, 14, 19], [12, 12], [13, 13])) == 0.0  # IoU exactly 0.5
    assert BoxIoU(0.49)(answer([10, 10, 14, 19], [12, 12], [13, 13])) == 1.0
    assert BoxL1()(answer([20, 20, 29, 29], [12, 12], [13, 13])) == 0.0  # distance exactly 10
    assert BoxL1(10.5)(answer([20, 20, 29, 29], [12, 12], [13, 13])) == 1.0
    assert PointL1()(answer([12, 10, 19, 19], [16, 16], [12, 12])) == 1.0  # on the border
    assert PointL1()(answer([13, 10, 19, 19], [16, 16], [12, 12])) == 0.0  # outside the predicted box
    assert PointL1()(answer([0, 0, 999, 999], [112, 12], [116, 16])) == 0.0  # distance exactly 100


@pytest.mark.parametrize("term", [BoxIoU, BoxL1, PointL1])
def test_bad_thresholds(term: type[BoxIoU]) -> None:
    for threshold in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="threshold"):
            term(threshold=threshold)


def test_single_object_terms_need_one_target() -> None:
    for targets in ((), (TARGET, TARGET)):
        with pytest.raises(ValueError, match=r"sample s1.*exactly 1 target"):
            BoxIoU()(case(targets=targets))


def test_pixelthink_by_hand() -> None:
    score = PixelThinkReward().score(case(difficulty=2.0))
    assert score.reward == 5.0
    assert dict(score.parts) == dict.fromkeys(["think_format", "answer_format", "box_iou", "point_l1", "box_l1"], 1.0)
    assert (score.length_used, score.length_budget, score.length_score) == (12, 96.0, 1.0)


def test_length_score_multiplies_unless_it_says_otherwise() -> None:
    known: dict[str, Any] = {"difficulty": 2.0, "reasoning_tokens": 346, "response_tokens": 346}
    assert PixelThinkReward(length=ReleasedBudget(length_mode="reasoning_tokens")).score(case(**known)).reward == 2.5
    assert PixelThinkReward(length=L1Exact(target_tokens=246, alpha=0.01)).score(case(**known)).reward == 4.0
    assert PixelThinkReward(length=NoLengthScore()).score(case()).reward == 5.0


def test_l1_is_correct_or_not() -> None:
    """A response that is right in all that matters is worth 1, any other 0, whatever its other terms."""
    known: dict[str, Any] = {"response_tokens": 90, "token_target": TokenTarget(100)}
    reward = L1Reward(length=L1Exact(alpha=0.01))
    assert reward.score(case(**known)).reward == pytest.approx(1 - 0.1)
    no_points = PERFECT.replace("[16, 16]", "[11, 190]")
    assert reward.score(case(no_points, **known)).parts["point_l1"] == 0.0
    assert reward.score(case(no_points, **known)).reward == pytest.approx(1 - 0.1)
    assert reward.score(case(PERFECT.replace("<think>", ""), **known)).reward == pytest.approx(-0.1)
    assert reward.score(case(PERFECT.replace("19, 19", "90, 90"), **known)).reward == pytest.approx(-0.1)
    strict = L1Reward(correct=("box_iou", "point_l1"), length=L1Max(alpha=0.01))
    assert strict.score(case(**known | {"token_target": TokenTarget(100, at_most=True)})).reward == pytest.approx(0.55)
    assert strict.score(case(no_points, **known | {"token_target": TokenTarget(100, at_most=True)})).reward == 0.0
    with pytest.raises(UserError, match=r"correct must name terms among think_format, .*; got mask"):
        L1Reward(correct=("mask",))


def test_extra_terms_are_logged_under_their_class_name() -> None:
    score = PixelThinkReward(length=NoLengthScore(), extra=[BoxIoU(0.9)]).score(case())
    assert (score.parts["BoxIoU"], score.reward) == (1.0, 6.0)
    with pytest.raises(ValueError, match="two terms are named 'ThinkFormat'"):
        PixelThinkReward(extra=[ThinkFormat(), ThinkFormat()])


def test_pixelthink_equals_the_released_reward() -> None:
    rewards = {mode: PixelThinkReward(length=ReleasedBudget(length_mode=mode)) for mode in get_args(LengthMode)}
    for row in golden_rows("pixelthink_reward.jsonl.gz"):
        score = rewards[row["length_mode"]].score(
            case(
                row["response"],
                targets=(parse_solution(row["solution"]),),
                difficulty=row["difficulty"],
                uncertainty=row["uncertainty"],
                reasoning_tokens=row["reasoning_token_count"],
            )
        )
        found = {
            **score.parts,
            "words": len(row["response"].split()),
            "reasoning": parse_completion(row["response"]).reasoning,
            "length_used": score.length_used,
            "length_budget": score.length_budget,
            "length_score": score.length_score,
            "reward": score.reward,
        }
        assert found == row["expected"], row["id"]


class _Length(RewardTerm):
    """Characters by 1000, under any name."""

    def __init__(self, name: str = "Length") -> None:
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def __call__(self, case: ScoringCase) -> float:
        return len(case.text) / 1000


def test_vision_reasoner_adds_extra_terms_to_the_released_parts() -> None:
    row = golden_rows("visionreasoner_reward.jsonl.gz")[0]
    one = case(row["response"], targets=parse_objects_solution(row["solution"]), style="visionreasoner")
    plain, more = VisionReasonerReward().score(one), VisionReasonerReward(extra=[_Length()]).score(one)
    assert dict(more.parts) == {**plain.parts, "Length": len(one.text) / 1000}
    assert more.reward == plain.reward + len(one.text) / 1000
    for names in (("Length", "Length"), ("accuracy",)):
        with pytest.raises(ValueError, match=f"VisionReasonerReward: two terms are named '{names[0]}'"):
            VisionReasonerReward(extra=[_Length(name) for name in names])


def test_vision_reasoner_equals_the_released_reward() -> None:
    reward = VisionReasonerReward()
    for row in golden_rows("visionreasoner_reward.jsonl.gz"):
        targets = parse_objects_solution(row["solution"])
        score = reward.score(case(row["response"], targets=targets, style=reward.answer_style))
        assert {**score.parts, "reward": score.reward} == row["expected"], row["id"]


def objects(*items: str) -> str:
    return f"<think>x</think><answer>[{', '.join(items)}]</answer>"


HIT = '{"bbox_2d": [10, 10, 19, 19], "point_2d": [12, 12]}'


@pytest.mark.parametrize(
    ("text", "targets", "accuracy"),
    [
        (objects(HIT), (TARGET,), 3.0),
        (objects(HIT, HIT), (TARGET,), 1.5),
        (objects(HIT), (TARGET, TARGET, TARGET), 1.0),
        (objects(HIT, '{"bbox_2d": [1, 2, 3, 4]}'), (TARGET,), 0.0),
        (objects(HIT, '{"bbox_2d": [NaN, 2, 3, 4], "point_2d": [1, 2]}'), (TARGET,), 1.5),
        (objects('{"bbox_2d": [10, 10, 19, 19], "point_2d": [20, 12]}'), (TARGET,), 2.0),
        (objects(), (TARGET,), 0.0),
        (objects(HIT), (), 0.0),
        (objects(), (), 0.0),
    ],
)
def test_vision_reasoner_accuracy_by_hand(text: str, targets: tuple[Target, ...], accuracy: float) -> None:
    score = VisionReasonerReward().score(case(text, targets=targets, style="visionreasoner"))
    assert score.parts["accuracy"] == accuracy


def test_saying_that_there_is_no_target_can_pay() -> None:
    reward = VisionReasonerReward(no_target_accuracy=3.0)
    assert reward.score(case(objects(), targets=(), style="visionreasoner")).parts["accuracy"] == 3.0
    assert reward.score(case("<answer>none</answer>", targets=(), style="visionreasoner")).parts["accuracy"] == 0.0


def test_non_repeat() -> None:
    assert non_repeat("a. b. c.") == 1.0
    assert non_repeat("a. b. a. . . .") == 1.0  # one repetition is forgiven, empty sentences do not count
    assert non_repeat("a. b. a. b.") == 0.0
    assert non_repeat("a. a. a.") == 0.0


class Module:
    """Stands for any class that takes a reward."""

    def __init__(self, reward: Reward = lazy_instance(PixelThinkReward)) -> None:
        self.reward = reward


class StrictModule:
    """The same without a default."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward


def build(owner: type, *arguments: str) -> PixelThinkReward:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(owner, "model")
    reward = parser.instantiate(parser.parse_args(arguments)).model.reward
    assert isinstance(reward, PixelThinkReward)
    return reward


@pytest.mark.parametrize("chosen", [[], ["--model.reward=PixelThinkReward"]])
def test_one_option_changes_and_the_others_stay(chosen: list[str]) -> None:
    owner = StrictModule if chosen else Module
    reward = build(owner, *chosen, "--model.reward.iou.threshold=0.7")
    iou, box = reward.terms["box_iou"], reward.terms["box_l1"]
    assert isinstance(iou, BoxIoU)
    assert isinstance(box, BoxL1)
    assert isinstance(reward.length, ReleasedBudget)
    assert (iou.threshold, box.threshold, reward.length.easy_budget) == (0.7, 10.0, 96.0)


def test_a_component_is_swapped_by_its_short_name() -> None:
    reward = build(Module, "--model.reward.length=TokenBudget", "--model.reward.length.hard_tokens=30")
    assert isinstance(reward.length, TokenBudget)
    assert (reward.length.easy_tokens, reward.length.hard_tokens) == (32.0, 30.0)


def test_swapped_length_scores_keep_no_default_of_the_one_before() -> None:
    """jsonargparse keeps values whose names both classes have: harmless only where the defaults agree."""
    defaults: dict[str, set[Any]] = {}
    for rule in (NoLengthScore, ReleasedBudget, TokenBudget, L1Exact, L1Max):
        for parameter in inspect.signature(rule).parameters.values():
            defaults.setdefault(parameter.name, set()).add(parameter.default)
    assert [name for name, values in defaults.items() if len(values) > 1] == []


def test_defaults_are_ordinary_objects() -> None:
    first, second = PixelThinkReward(), PixelThinkReward()
    assert type(first.length) is ReleasedBudget
    assert first.length is not second.length


def test_terms_are_added_to_a_list() -> None:
    reward = build(Module, "--model.reward.extra+=BoxIoU", "--model.reward.extra.threshold=0.9")
    extra = reward.terms["BoxIoU"]
    assert isinstance(extra, BoxIoU)
    assert extra.threshold == 0.9


def test_the_printed_configuration_shows_every_constant() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Module, "model")
    printed = parser.dump(parser.get_defaults())
    for line in ("slope: 500.0", "hard_budget: 256.0", "threshold: 100.0", "length_mode: response_words"):
        assert line in printed


@pytest.mark.parametrize(
    "text",
    ["", "<box>(1,2),(3,4)</box>", "<box>(1,2),(3,x)</box><points>(1,2),(3,4)</points>",
     "<box>(9,2),(3,4)</box><points>(1,2),(3,4)</points>",
     f"<box>({'9' * 999},2),(3,4)</box><points>(1,2),(3,4)</points>"],
)  # fmt: skip
def test_bad_solutions(text: str) -> None:
    with pytest.raises(ValueError, match="solution"):
        parse_solution(text)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[" * 100_000, '[{"bbox_2d": [1, 2, NaN, 4], "point_2d": [1, 2]}]'])
def test_bad_object_solutions(text: str) -> None:
    with pytest.raises(ValueError, match="solution"):
        parse_objects_solution(text)
