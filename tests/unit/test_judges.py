"""Judges of reasoning: what they ask, what they take for an answer, what they do when there is none."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torchmetrics.functional.text import chrf_score

from pixelthink.judges.base import JudgedSample
from pixelthink.judges.openai import OpenAIJudge
from pixelthink.judges.reference import ReferenceJudge
from pixelthink.judges.rubric import RUBRIC, SCHEMA, parse_score
from tests.http_server import Server
from tests.support import ROOT

Reply = tuple[int, dict[str, str], bytes] | None


def chat(content: Any) -> Reply:
    return 200, {}, json.dumps({"choices": [{"message": {"content": content}}]}).encode()


def sample(number: int = 0, reasoning: str = "the cup is left of the plate", **more: Any) -> JudgedSample:
    return JudgedSample(f"s{number}", f"question {number}?", reasoning, **more)


@pytest.fixture
def judged_by(tmp_path: Path) -> Iterator[Callable[..., tuple[OpenAIJudge, Server]]]:
    """Makes a judge whose server answers by a function of the request's number and body."""
    servers: list[Server] = []

    def make(answer: Callable[[int, dict[str, Any]], Reply], **options: Any) -> tuple[OpenAIJudge, Server]:
        servers.append(Server(answer))
        fixed: dict[str, Any] = {"cache": str(tmp_path / "deep/cache.jsonl"), "retries": 0, "timeout": 5.0}
        judge = OpenAIJudge(servers[-1].url, "m", **{**fixed, "backoff": 0.001, **options})
        judge.setup()
        return judge, servers[-1]

    yield make
    for server in servers:
        server.close()


def test_the_published_rubric_is_the_one_that_is_asked() -> None:
    published = (ROOT / "docs/judge_rubric.md").read_text(encoding="utf-8")
    assert "".join(f"    {line}\n" for line in RUBRIC.split("\n")) in published
    assert json.dumps(SCHEMA) in published


def test_what_the_judge_is_asked(judged_by, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "hush")
    judge, server = judged_by(
        lambda n, body: chat('{"score": 7}'), api_key_variable="MY_KEY", reference="short", image_side=64
    )
    judge.setup()
    image = Image.new("RGB", (640, 320), "red")
    assert judge.rate(sample(references={"short": "left of it"}, image=image)).score == 7.0
    headers, body = server.requests[0]
    assert headers["Authorization"] == "Bearer hush"
    assert (body["model"], body["temperature"]) == ("m", 0.0)
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    system, user = body["messages"]
    assert system["content"] == RUBRIC
    picture, text = user["content"]
    assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert "question 0?" in text["text"]
    assert "left of it" in text["text"]
    assert "<reasoning>\nthe cup is left of the plate\n</reasoning>" in text["text"]


def test_nothing_is_asked_twice_and_a_torn_cache_is_read(judged_by, tmp_path: Path) -> None:
    judge, server = judged_by(lambda n, body: chat(json.dumps({"score": n})))
    assert [judge.rate(sample(n)).score for n in (0, 1, 0, 1)] == [0.0, 1.0, 0.0, 1.0]
    with (tmp_path / "deep/cache.jsonl").open("a") as file:
        file.write('{"key": "torn')
    again, other = judged_by(lambda n, body: chat('{"score": 9}'))
    assert [again.rate(sample(n)).score for n in (0, 1, 2)] == [0.0, 1.0, 9.0]
    assert (len(server.requests), len(other.requests)) == (2, 1)
    assert again.rate(sample(0, reasoning="other words")).score == 9.0  # another question


def test_several_at_a_time(judged_by) -> None:
    def slow(n: int, body: dict[str, Any]) -> Reply:
        time.sleep(0.05)
        return chat('{"score": 5}')

    judge, server = judged_by(slow, concurrency=4)
    verdicts = [future.result() for future in judge.submit([sample(n) for n in range(8)])]
    judge.close()
    assert [verdict.score for verdict in verdicts] == [5.0] * 8
    assert 2 <= server.most <= 4


@pytest.mark.parametrize(
    ("reply", "cause", "detail"),
    [
        (chat("seven"), "unusable_answer", "not JSON"),
        (chat('{"score": 11}'), "unusable_answer", "no score from 0 to 10"),
        ((200, {}, b"<html>"), "unusable_answer", "no chat completion"),
        ((401, {}, b"who are you"), "refused", "HTTP 401: who are you"),
        ((503, {}, b"busy"), "refused", "HTTP 503"),
        (None, "unreachable", ""),
    ],
)
def test_a_sample_without_a_rating_says_why(judged_by, reply: Reply, cause: str, detail: str) -> None:
    judge, server = judged_by(lambda n, body: reply, retries=1)
    verdict = judge.rate(sample())
    assert (verdict.score, verdict.failure) == (None, cause)
    assert detail in verdict.detail
    assert len(server.requests) == (1 if detail.startswith("HTTP 401") else 2)


def test_too_late_is_too_late_and_after_a_few_in_a_row_nobody_is_asked(judged_by) -> None:
    def late(n: int, body: dict[str, Any]) -> Reply:
        if n != 1:
            time.sleep(0.6)
        return chat('{"score": 5}')

    judge, server = judged_by(late, timeout=0.2, give_up_after=2)
    verdicts = [judge.rate(sample(n)) for n in range(6)]
    assert [verdict.failure for verdict in verdicts] == ["timeout", None, *["timeout"] * 4]
    assert len(server.requests) == 4  # one late, one in time, two late: two in a row
    assert "not asked any more after 2 failures in a row" in verdicts[-1].detail


def test_a_second_try_may_succeed(judged_by) -> None:
    judge, server = judged_by(
        lambda n, body: chat('{"score": 4}') if n else (429, {"Retry-After": "0"}, b""), retries=1
    )
    assert judge.rate(sample()).score == 4.0
    assert server.requests[1][1]["temperature"] > 0


@pytest.mark.parametrize(
    "text", ["", "[7]", '{"score": "7"}', '{"score": true}', '{"score": 7, "why": "x"}', "[" * 9999]
)
def test_scores_are_numbers_from_0_to_10(text: str) -> None:
    with pytest.raises(ValueError, match="the judge's answer is no"):
        parse_score(text)


def test_the_reference_judge_is_the_librarys_metric() -> None:
    reference = "the small red cup beside the plate"
    near, far = "a small red cup by the plate", "nothing to see here"
    judge = ReferenceJudge()
    scores = [
        judge.rate(sample(reasoning=text, references={"short": reference})).score for text in (near, far, "", reference)
    ]
    assert scores[0] == pytest.approx(10 * float(chrf_score([near], [[reference]])), abs=1e-9)
    assert pytest.approx(scores[3], abs=1e-5) == 10
    assert 0 == scores[2] < scores[1] < scores[0] < 10
    words_too = ReferenceJudge(metric="chrf").rate(sample(reasoning=near, references={"short": reference})).score
    assert words_too == pytest.approx(10 * float(chrf_score([near], [[reference]], n_word_order=0)), abs=1e-9)
    assert "NOT comparable with the paper" in judge.note
    with pytest.raises(ValueError, match=r"sample 's0' has no 'short' reasoning for ReferenceJudge; it has: long"):
        judge.rate(sample(references={"long": "x"}))


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="http or https address"):
        OpenAIJudge("file:///etc/passwd", "m")
    with pytest.raises(ValueError, match="give_up_after must be at least 1"):
        OpenAIJudge("http://127.0.0.1", "m", give_up_after=0)
