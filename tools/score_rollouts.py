"""Scores logged responses again, under any reward.

    python tools/score_rollouts.py --config configs/reward/pixelthink.yaml --input IN.jsonl --output OUT.jsonl
    python tools/score_rollouts.py --config configs/reward/token_budget.yaml --reward.init_args.length.easy_budget=24 …

A row of the input holds `id`, `response`, `solution` and, where the reward asks for them, `difficulty` (1 to 10),
`uncertainty` (0 to 1), `reasoning_token_count`, `length_mode`; other keys are ignored. A row of the output holds `id`,
`parts`, `length_used`, `length_budget`, `length_score`, `reward`. A row's `length_mode` overrides the configuration's.
`solution` is `<box>(x1,y1),(x2,y2)</box><points>(x,y),(x,y)</points>`, or for multi-object rewards
`[{"bbox_2d": […], "point_2d": […]}, …]` as text or as a list.

Whatever is wrong is one line on standard error, `FILE:ROW: why` where it is a row, with exit code 2; then no output is
written, and an older one stays as it was.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

import pixelthink.rewards.composite
import pixelthink.rewards.mask_iou
import pixelthink.rewards.vision_reasoner  # noqa: F401  (imported, so that the short class names resolve)
from pixelthink.cli.layers import read_yaml
from pixelthink.data.solution import parse_objects_solution, parse_solution
from pixelthink.errors import UserError
from pixelthink.files.jsonl import read_rows, row_error, write_rows_atomically
from pixelthink.geometry import Target
from pixelthink.parsing import parse_completion
from pixelthink.rewards.base import LengthScore, Reward, RewardTerm
from pixelthink.rewards.length import known_length_mode
from pixelthink.types import Score, ScoringCase


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = build_parser()
    try:
        options = parser.parse_args([*with_rewards(sys.argv[1:] if arguments is None else arguments)])
        reward: Reward = parser.instantiate(options).reward
        count = write_rows_atomically(options.output, score_rows(reward, options.input))
    except (ArgumentError, OSError, TypeError, ValueError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"{count} responses scored: {options.output}")
    return 0


def build_parser() -> ArgumentParser:
    """The options."""
    parser = ArgumentParser(prog="score_rollouts.py", description=(__doc__ or "").split("\n")[0], exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with a reward; see configs/reward/.")
    parser.add_argument("--reward", type=Reward, required=True, help="The reward, as class_path and init_args.")
    parser.add_argument("--input", type=str, required=True, help="JSON Lines file of logged responses (.gz too).")
    parser.add_argument("--output", type=str, required=True, help="JSON Lines file to write (.gz too), all or nothing.")
    return parser


def with_rewards(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments, with the reward that a config file names in place of the file."""
    before = ""
    for argument in arguments:
        if before == "--config":
            yield reward_of(argument)
        elif argument.startswith("--config="):
            yield f"--config={reward_of(argument.removeprefix('--config='))}"
        else:
            yield argument
        before = argument


def reward_of(path: str) -> str:
    """The reward of a layer or of a run's config, as JSON.

    Raises:
        UserError: the file cannot be read, or names none.
    """
    value = read_yaml(Path(path))
    model = value.get("model") or {}
    found = value.get("reward") or model.get("reward") or (model.get("init_args") or {}).get("reward")
    if found is None:
        raise UserError(f"--config: {path} has no model.reward; see configs/reward")
    return json.dumps({"reward": found})


def score_rows(reward: Reward, path: str) -> Iterator[dict[str, Any]]:
    """Yields one scored row per row of the file.

    Raises:
        ValueError: if a row cannot be scored: `FILE:ROW: why`.
    """
    by_mode: dict[str, Reward] = {}
    for number, row in read_rows(path):
        try:
            mode = row.get("length_mode")
            if mode is not None and not isinstance(mode, str):
                raise ValueError(f"length_mode must be a text, got {mode!r}")
            if mode is not None and mode not in by_mode:
                by_mode[mode] = with_length_mode(reward, mode)
            chosen = reward if mode is None else by_mode[mode]
            yield output_row(row, chosen.score(scoring_case(row, chosen.answer_style)))
        except ValueError as error:
            raise row_error(path, number, error) from None


def with_length_mode(reward: Reward, mode: str) -> Reward:
    """The same reward, its length counted in another way; one that can count in one way only stays as it is.

    Raises:
        UserError: there is no such mode.
    """
    known = known_length_mode(mode)
    if not hasattr(getattr(reward, "length", None), "length_mode"):
        return reward
    other = copy.deepcopy(reward)
    other.length.length_mode = known  # type: ignore[attr-defined]
    return other


def scoring_case(row: Mapping[str, Any], style: str) -> ScoringCase:
    """What a reward may look at, from one row.

    Raises:
        ValueError: if a field is missing or of the wrong kind; says which.
    """
    for key in ("id", "response", "solution"):
        if row.get(key) is None:
            raise ValueError(f"no {key!r}")
    response = row["response"]
    if not isinstance(response, str):
        raise ValueError(f"response must be a text, got {type(response).__name__}")
    tokens = number_of(row, "reasoning_token_count")
    if tokens is not None and tokens != int(tokens):
        raise ValueError(f"reasoning_token_count must be a whole number, got {tokens}")
    return ScoringCase(
        id=str(row["id"]),
        text=response,
        answer=parse_completion(response, style),
        targets=targets_of(row["solution"], style),
        difficulty=number_of(row, "difficulty"),
        uncertainty=number_of(row, "uncertainty"),
        reasoning_tokens=None if tokens is None else int(tokens),
    )


def targets_of(solution: object, style: str) -> tuple[Target, ...]:
    """The truth, written as the answer style's training rows write it."""
    if style == "visionreasoner":
        return parse_objects_solution(solution if isinstance(solution, str) else json.dumps(solution))
    if not isinstance(solution, str):
        raise ValueError(f"solution must be a text, got {type(solution).__name__}")
    return (parse_solution(solution),)


def number_of(row: Mapping[str, Any], key: str) -> float | None:
    """A finite number of the row; None where it is absent or null."""
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} must be a number, got {value!r}")
    if not abs(value) < math.inf:
        raise ValueError(f"{key} must be finite, got {value}")
    return value


def output_row(row: Mapping[str, Any], score: Score) -> dict[str, Any]:
    """The row to write."""
    return {
        "id": row["id"],
        "parts": dict(score.parts),
        "length_used": score.length_used,
        "length_budget": score.length_budget,
        "length_score": score.length_score,
        "reward": score.reward,
    }


def one_line(error: BaseException) -> str:
    """The message on one line, of bounded length; jsonargparse's nested complaints shrink to option and reason."""
    text = " ".join(str(error).split()) or type(error).__name__
    keys = re.findall(r'Parser key "([^"]+)": ', text)
    if keys:
        reason = text.rpartition(f'Parser key "{keys[-1]}": ')[2]
        unknown = re.fullmatch(r"Expected a dot import path string: (.*)", reason)
        text = f"{'.'.join(keys)}: {unknown_component(unknown[1]) if unknown else reason}"
    return text if len(text) <= 500 else text[:499] + "…"


def unknown_component(name: str) -> str:
    """Says that no reward component has this name, and which ones sound like it."""
    known = [cls.__name__ for base in (Reward, RewardTerm, LengthScore) for cls in base.__subclasses__()]
    similar = difflib.get_close_matches(name, [n for n in known if not n.startswith("LazyInstance_")], n=1)
    hint = f"did you mean {similar[0]}?" if similar else "see --reward.help CLASS"
    return f"unknown component {name!r}; {hint}"


if __name__ == "__main__":
    sys.exit(main())
