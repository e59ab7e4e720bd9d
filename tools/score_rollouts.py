"""Scores logged responses again, under any reward.

    python tools/score_rollouts.py --config configs/reward/pixelthink.yaml --input IN.jsonl --output OUT.jsonl
    python tools/score_rollouts.py --config configs/reward/token_budget.yaml --reward.init_args.length.easy_budget=24 …

A row of the input holds `id`, `response`, `solution` and, where the reward asks for them, `difficulty` (1 to 10),
`uncertainty` (0 to 1), `reasoning_token_count`, `length_mode`, for L1 `response_token_count` and `token_target` (the
tokens asked for; negative: at most so many); other keys are ignored. A row of the output holds `id`, `parts`,
`length_used`, `length_budget`, `length_score`, `reward`. A row's `length_mode` overrides the configuration's.
`solution` is `<box>(x1,y1),(x2,y2)</box><points>(x,y),(x,y)</points>`, or for multi-object rewards
`[{"bbox_2d": […], "point_2d": […]}, …]` as text or as a list.

Whatever is wrong is one line on standard error, `FILE:ROW: why` where it is a row, with exit code 2; then no output is
written, and an older one stays as it was.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

import pixelthink.rewards.composite
import pixelthink.rewards.mask_iou
import pixelthink.rewards.vision_reasoner  # noqa: F401  (imported, so that the short class names resolve)
from pixelthink.cli.layers import reward_of
from pixelthink.cli.messages import instantiate
from pixelthink.data.logged_responses import LoggedResponses, scored_row
from pixelthink.errors import UserError
from pixelthink.files.jsonl import read_rows, row_error, write_rows_atomically
from pixelthink.rewards.base import LengthScore, Reward, RewardTerm


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = build_parser()
    try:
        options = parser.parse_args([*with_rewards(sys.argv[1:] if arguments is None else arguments)])
        reward: Reward = instantiate(parser, options).reward
        count = write_rows_atomically(options.output, score_rows(reward, options.input))
    except (ArgumentError, UserError, OSError) as error:
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


def score_rows(reward: Reward, path: str) -> Iterator[dict[str, Any]]:
    """Yields one scored row per row of the file.

    Raises:
        UserError: a row cannot be scored: `FILE:ROW: why`.
    """
    scorer = LoggedResponses(reward)
    for number, row in read_rows(path):
        try:
            yield scored_row(row, scorer.score(row))
        except UserError as error:
            raise row_error(path, number, error) from None


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
