"""Has a vision-language model write a short and a long reference reasoning for every sample of a source.

    python tools/write_reference_reasoning.py --source Checked --source.path my_data \
        --server http://127.0.0.1:8000/v1 --model Qwen/Qwen2.5-VL-72B-Instruct --output reasoning.jsonl

The server is any that speaks OpenAI's chat completions with structured output, vLLM included. The key, where it wants
one, is read from the environment variable that --api_key_variable names. Answers are kept in OUTPUT.cache.jsonl as they
come in; the same command asks only for what is missing there. The output has a line `{id, question, short, long}` for
each sample, and is written only once every sample has both. The source `ReasonSegDiff` adds it to samples:

    {class_path: ReasonSegDiff, init_args: {samples: …, annotations: reasoning.jsonl,
      fields: {id: id, difficulty: null, reasoning: {short: short, long: long}}}}

Exit code 0; 1 where samples are without reasoning, which are counted and named; 2 with one line on standard error where
something is wrong with the call or the source.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from statistics import median

from jsonargparse import ArgumentError, ArgumentParser
from tqdm import tqdm

from pixelthink.cli.messages import instantiate
from pixelthink.cli.registry import load_components
from pixelthink.data.asking import Answers, ask_about
from pixelthink.data.base import SampleSource
from pixelthink.data.reference_reasoning import (
    STYLES,
    ReasoningOptions,
    parse_reasoning,
    reasoning_question,
)
from pixelthink.errors import UserError
from pixelthink.files.jsonl import write_rows_atomically
from pixelthink.judges.chat import AnswerCache, ChatClient


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        load_components()
        parser = build_parser()
        options = instantiate(parser, parser.parse_args(arguments))
        how = ReasoningOptions(**{field.name: options[field.name] for field in fields(ReasoningOptions)})
        client = ChatClient(how, os.environ.get(options.api_key_variable))
        cache = AnswerCache(f"{options.output}.cache.jsonl", "reasoning", parse_reasoning)
        options.source.setup()
        with tqdm(total=len(options.source), unit="sample", desc="asking", file=sys.stderr) as bar:
            answers = ask_about(options.source, reasoning_question(how), client, cache, bar.update)
        if len(answers.by_id) < len(options.source):
            answers.complain(len(options.source), "without reasoning", "answers")
            return 1
        write(answers, options.output)
    except (ArgumentError, UserError, OSError) as error:
        print(f"error: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> ArgumentParser:
    """The options."""
    about = (__doc__ or "").split("\n")[0]
    parser = ArgumentParser(prog="write_reference_reasoning.py", description=about, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_argument("--source", type=SampleSource, required=True, help="What to write reasoning for.")
    parser.add_argument("--output", type=str, required=True, help="JSON Lines file of the reasoning.")
    parser.add_class_arguments(ReasoningOptions)
    parser.add_argument("--api_key_variable", type=str, default="OPENAI_API_KEY", help="Where the key is, if any.")
    return parser


def write(answers: Answers[dict[str, str]], output: str) -> None:
    """Writes the reasoning and prints how long it is."""
    rows = [{"id": name, "question": answers.questions[name], **both} for name, both in answers.by_id.items()]
    write_rows_atomically(output, rows)
    words = {style: median(len(both[style].split()) for both in answers.by_id.values()) for style in STYLES}
    print(f"{len(rows)} samples, median words: " + ", ".join(f"{style} {words[style]:g}" for style in STYLES))


if __name__ == "__main__":
    sys.exit(main())
