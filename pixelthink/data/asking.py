"""One question about each sample of a source to a vision-language model on a server: several at a time, resumable."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pixelthink.data.base import SampleSource
from pixelthink.data.difficulty import some
from pixelthink.data.validation import check_sample
from pixelthink.judges.chat import AnswerCache, ChatClient, ServerError, question_key
from pixelthink.types import Sample

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class SampleQuestion(Generic[Answer]):
    """What is asked about a sample.

    Attributes:
        name: What an answer is called, towards the server and in the cache.
        schema: JSON schema of the answer.
        messages: Chat messages in the OpenAI format for a sample.
        parse: Reads the answer's text; its ValueError asks again.
    """

    name: str
    schema: Mapping[str, Any]
    messages: Callable[[Sample], list[dict[str, Any]]]
    parse: Callable[[str], Answer]


@dataclass
class Answers(Generic[Answer]):
    """The answers about a source.

    Attributes:
        by_id: In the source's order.
        problems: Why a sample has none, by id (or by `sample N` where it could not even be read).
        stopped: Why the server was not asked any further, or None.
        questions: The samples' questions by id.
    """

    by_id: dict[str, Answer] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    questions: dict[str, str] = field(default_factory=dict)

    def complain(self, wanted: int, state: str, answers: str) -> None:
        """Prints to standard error what is missing and why, e.g. `complain(9, "unrated", "ratings")`."""
        for name, problem in list(self.problems.items())[:5]:
            print(f"{name}: {problem}", file=sys.stderr)
        stopped = f"; the server was given up: {self.stopped}" if self.stopped else ""
        named = f": {some(self.problems)}" if self.problems else ""
        print(
            f"error: {wanted - len(self.by_id)} of {wanted} samples are {state}{named}{stopped}; the {answers} so far "
            "are kept, the same command asks for the rest",
            file=sys.stderr,
        )


def ask_about(
    source: SampleSource,
    question: SampleQuestion[Answer],
    client: ChatClient,
    cache: AnswerCache[Answer],
    progress: Callable[[int], object] = lambda n: None,
) -> Answers[Answer]:
    """Asks about every sample that the cache does not know, `client.options.concurrency` at a time.

    The source is set up. New answers go into the cache, and `progress` is called with 1 after each sample. Where the
    server cannot be reached or refuses, no further sample is begun.
    """
    answers = Answers[Answer]()
    reading = threading.Lock()  # sources are not made for several threads

    def ask(index: int) -> tuple[str, str, Answer | Exception] | None:
        """Id, question and answer of one sample, or why it has none; None once the server has failed."""
        if answers.stopped is not None:
            return None
        name, text = f"sample {index}", ""
        try:
            with reading:
                sample = check_sample(source[index])
            name, text = sample.id, sample.question
            messages = question.messages(sample)
            key = question_key(client.options.model, question.schema, messages)
            if (answer := cache.get(key)) is None:
                answer = client.ask(messages, question.schema, question.name, question.parse)
                cache.put(key, name, answer)
        except (ValueError, ServerError) as error:
            if isinstance(error, ServerError):
                answers.stopped = answers.stopped or str(error)
            return name, text, error
        return name, text, answer

    with ThreadPoolExecutor(client.options.concurrency) as pool:
        for found in pool.map(ask, range(len(source))):
            if found is None:
                continue
            name, text, result = found
            if isinstance(result, Exception):
                answers.problems[name] = str(result)
            else:
                answers.by_id[name], answers.questions[name] = result, text
            progress(1)
    return answers
