"""A judging model on any OpenAI-compatible server."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from pixelthink.judges.base import Judge, JudgedSample, JudgeFailure, Verdict, reference_of
from pixelthink.judges.chat import AnswerCache, ChatClient, ChatOptions, ServerError, question_key
from pixelthink.judges.rubric import SCHEMA, judge_messages, parse_score


class OpenAIJudge(Judge):
    """RScore by a model on a server that speaks OpenAI's chat completions with structured output, vLLM included.

    Ratings are kept on disk as they come in, by all that they depend on, so that nothing is asked twice: a run that
    was interrupted, and another evaluation with the same reasoning, take them from there. Where the server fails for
    several samples in a row, the rest is not asked, and counted under the same cause; the same command asks for them
    later.

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
            raise ValueError("OpenAIJudge: give_up_after must be at least 1, image_side must not be negative")
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

    def setup(self) -> None:
        Path(self.cache).parent.mkdir(parents=True, exist_ok=True)
        self._answers = AnswerCache(self.cache, "verdict", lambda text: {"score": parse_score(text)})
        self._client = ChatClient(self.options, os.environ.get(self.api_key_variable))
        self._failures_in_a_row = 0

    def rate(self, sample: JudgedSample) -> Verdict:
        if self._client is None or self._answers is None:
            raise RuntimeError("OpenAIJudge.setup() has to come before the first sample")
        messages = judge_messages(sample, self._reference(sample), self.image_side)
        key = question_key(self.options.model, SCHEMA, messages)
        if (known := self._answers.get(key)) is not None:
            return Verdict(known["score"])
        if (given_up := self._given_up()) is not None:
            return given_up
        try:
            score = self._client.ask(messages, SCHEMA, "verdict", parse_score)
        except ValueError as error:
            return Verdict(None, "unusable_answer", str(error))
        except ServerError as error:
            return self._failed(error)
        with self._lock:
            self._failures_in_a_row = 0
        self._answers.put(key, sample.id, {"score": score})
        return Verdict(score)

    _last_failure: ServerError | None = None

    def _failed(self, error: ServerError) -> Verdict:
        with self._lock:
            self._failures_in_a_row += 1
            self._last_failure = error
        return Verdict(None, error.cause, str(error))

    def _given_up(self) -> Verdict | None:
        """The verdict without asking, once the server has failed too often in a row."""
        with self._lock:
            error = self._last_failure
            if error is None or self._failures_in_a_row < self.give_up_after:
                return None
        cause: JudgeFailure = error.cause
        return Verdict(None, cause, f"not asked any more after {self.give_up_after} failures in a row: {error}")

    def _reference(self, sample: JudgedSample) -> str | None:
        return None if self.reference is None else reference_of(sample, self.reference, "OpenAIJudge")
