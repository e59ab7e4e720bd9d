"""A judging model on any OpenAI-compatible server."""

from __future__ import annotations

import os
import threading

from pixelthink.errors import UserError
from pixelthink.files.jsonl import append_log
from pixelthink.judges.base import Judge, JudgedSample, Verdict, reference_of
from pixelthink.judges.chat import AnswerCache, ChatClient, ChatOptions, ServerError, question_key
from pixelthink.judges.rubric import SCHEMA, judge_messages, parse_score


class OpenAIJudge(Judge):
    """RScore by a model on a server that speaks OpenAI's chat completions with structured output, vLLM included.

    Ratings are cached on disk as they come in: an interrupted run, or another evaluation with the same reasoning, reads
    them from there. If the server fails for several samples in a row, the judge does not ask for the rest, which get
    the same failure; the same command asks for them later.

    Args:
        server: Base address, e.g. "http://127.0.0.1:8000/v1".
        model: Name that the server knows the judging model by.
        cache: JSON Lines file of the ratings.
        api_key_variable: Environment variable that holds the key, where the server wants one.
        concurrency: Requests at a time.
        retries: Further attempts after a failed one.
        backoff: Seconds before the first of them; each next one waits twice as long, at most a minute.
        timeout: Seconds to wait for an answer.
        reference: Style of the reference reasoning to show the judge; None shows none.
        image_side: Longer side in pixels of the image that the judge sees; 0 shows none.
        give_up_after: Samples in a row for which the server may fail.
    """

    def __init__(
        self,
        server: str,
        model: str,
        cache: str = "runs/judge_cache.jsonl",
        api_key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        retries: int = 3,
        backoff: float = 1.0,
        timeout: float = 120.0,
        reference: str | None = None,
        image_side: int = 0,
        give_up_after: int = 3,
    ) -> None:
        if give_up_after < 1 or image_side < 0:
            raise UserError("OpenAIJudge: give_up_after must be at least 1, image_side must not be negative")
        self.options = ChatOptions(server, model, concurrency, retries, backoff, timeout, max_tokens=50)
        self.cache = cache
        self.api_key_variable = api_key_variable
        self.concurrency = concurrency
        self.reference = reference
        self.image_side = image_side
        self.give_up_after = give_up_after
        self.note = (
            f"rated 0 to 10 by {model} under docs/judge_rubric.md; the paper's judge and rubric are not public, so "
            "ratings compare with those of the same judge"
        )
        self._client: ChatClient | None = None
        self._answers: AnswerCache[dict[str, float]] | None = None
        self._lock = threading.Lock()
        self._failures_in_a_row = 0
        self._last_failure: ServerError | None = None

    def setup(self) -> None:
        append_log(self.cache, [])  # fails now if it cannot be written
        self._answers = AnswerCache(self.cache, "verdict", lambda text: {"score": parse_score(text)})
        self._client = ChatClient(self.options, os.environ.get(self.api_key_variable))
        self._failures_in_a_row = 0

    def rate(self, sample: JudgedSample) -> Verdict:
        if self._client is None or self._answers is None:
            raise RuntimeError("OpenAIJudge.setup() has to come before the first sample")
        reference = None if self.reference is None else reference_of(sample, self.reference, "OpenAIJudge")
        messages = judge_messages(sample, reference, self.image_side)
        key = question_key(self.options.model, SCHEMA, messages)
        if (known := self._answers.get(key)) is not None:
            return Verdict(known["score"])
        with self._lock:
            if (last := self._last_failure) is not None and self._failures_in_a_row >= self.give_up_after:
                reason = f"not asked any more after {self.give_up_after} failures in a row: {last}"
                return Verdict(None, last.cause, reason)
        try:
            score = self._client.ask(messages, SCHEMA, "verdict", parse_score)
        except ValueError as error:
            return Verdict(None, "unusable_answer", str(error))
        except ServerError as error:
            with self._lock:
                self._failures_in_a_row += 1
                self._last_failure = error
            return Verdict(None, error.cause, str(error))
        with self._lock:
            self._failures_in_a_row = 0
        self._answers.put(key, sample.id, {"score": score})
        return Verdict(score)
