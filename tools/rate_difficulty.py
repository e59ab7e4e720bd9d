"""Has a vision-language model rate the difficulty of every sample of a source.

    python tools/rate_difficulty.py --source Checked --source.path my_data \
        --server http://127.0.0.1:8000/v1 --model Qwen/Qwen2.5-VL-72B-Instruct --output difficulty.json

The server is any that speaks OpenAI's chat completions with structured output, vLLM included. The key, where it wants
one, is read from the environment variable that --api_key_variable names. Ratings are kept in OUTPUT.cache.jsonl as they
come in; the same command asks only for what is missing there. The output is in the released format, with the three
ratings beside, and is written only once every sample has one.

Exit code 0; 1 where samples are unrated, which are counted and named; 2 with one line on standard error where something
is wrong with the call or the source.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser
from tqdm import tqdm

from pixelthink.cli.messages import instantiate
from pixelthink.cli.registry import load_components
from pixelthink.data.asking import ask_about
from pixelthink.data.base import SampleSource
from pixelthink.data.rating import Aggregate, RaterOptions, aggregate_rating, parse_rating, rating_question
from pixelthink.errors import UserError
from pixelthink.files.atomic import write_atomically
from pixelthink.judges.chat import AnswerCache, ChatClient


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        load_components()
        parser = build_parser()
        options = instantiate(parser, parser.parse_args(arguments))
        how = RaterOptions(**{field.name: options[field.name] for field in fields(RaterOptions)})
        client = ChatClient(how, os.environ.get(options.api_key_variable))
        cache = AnswerCache(f"{options.output}.cache.jsonl", "rating", parse_rating)
        options.source.setup()
        question = rating_question(how.image_side)
        with tqdm(total=len(options.source), unit="sample", desc="rating", file=sys.stderr) as bar:
            ratings = ask_about(options.source, question, client, cache, bar.update)
    except (ArgumentError, UserError, OSError) as error:
        print(f"error: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 2
    if len(ratings.by_id) < len(options.source):
        ratings.complain(len(options.source), "unrated", "ratings")
        return 1
    write(ratings.by_id, options.output, options.aggregate)
    return 0


def build_parser() -> ArgumentParser:
    """The options."""
    parser = ArgumentParser(prog="rate_difficulty.py", description=(__doc__ or "").split("\n")[0], exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_argument("--source", type=SampleSource, required=True, help="What to rate.")
    parser.add_argument("--output", type=str, required=True, help="JSON file of the difficulties.")
    parser.add_class_arguments(RaterOptions)
    parser.add_argument("--aggregate", type=Aggregate, default="mean", help="How three ratings become one difficulty.")
    parser.add_argument("--api_key_variable", type=str, default="OPENAI_API_KEY", help="Where the key is, if any.")
    return parser


def write(ratings: Mapping[str, Mapping[str, float]], output: str, how: Aggregate) -> None:
    """Writes the difficulties and prints what they look like."""
    rows = [
        {"image_id": name, "difficulty_score_model": aggregate_rating(parts, how), **parts}
        for name, parts in ratings.items()
    ]
    write_atomically(Path(output), json.dumps(rows, ensure_ascii=False, indent=1))
    values = sorted(float(row["difficulty_score_model"]) for row in rows)
    print(f"{len(rows)} samples rated, {values[0]:.2f} to {values[-1]:.2f}, median {values[len(values) // 2]:.2f}")


if __name__ == "__main__":
    sys.exit(main())
