"""Rating by a server: a real one on loopback, which dies, answers garbage, limits its rate and recovers."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelthink.data.asking import Answers, ask_about
from pixelthink.data.difficulty import read_difficulties, success_to_difficulty
from pixelthink.data.rating import (
    SCHEMA,
    RaterOptions,
    aggregate_rating,
    describe_mask,
    parse_rating,
    rating_messages,
    rating_question,
)
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.judges.chat import AnswerCache, ChatClient
from pixelthink.types import Sample
from tests.http_server import Server
from tools import compare_difficulty, rate_difficulty

GOOD = {"scene": 4, "seg": 6, "language": 2}


def chat(content: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: Any) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def rating_cache(path: Path) -> AnswerCache[dict[str, float]]:
    return AnswerCache(path, "rating", parse_rating)


def rate_source(
    source: ShapeScenes, asked: ChatClient, cache: AnswerCache[dict[str, float]]
) -> Answers[dict[str, float]]:
    return ask_about(source, rating_question(), asked, cache)


def client(server: str, waits: list[float] | None = None, **options: Any) -> ChatClient:
    fields: dict[str, Any] = {"model": "m", "retries": 2, "backoff": 0.01, "timeout": 5.0} | options
    return ChatClient(RaterOptions(server, **fields), "secret", (waits if waits is not None else []).append)


def test_every_sample_is_asked_for_once_and_several_at_a_time(tmp_path: Path, serve: Callable[..., Server]) -> None:
    def answer(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        time.sleep(0.02)
        return 200, {}, chat(json.dumps(GOOD))

    server = serve(answer)
    source, cache = ShapeScenes(size=12), rating_cache(tmp_path / "c.jsonl")
    ratings = rate_source(source, client(server.url, concurrency=4), cache)
    assert list(ratings.by_id) == [source[i].id for i in range(12)]
    assert (len(server.requests), ratings.problems, ratings.stopped) == (12, {}, None)
    assert 1 < server.most <= 4
    headers, body = server.requests[0]
    assert headers["Authorization"] == "Bearer secret"
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["scene", "seg", "language"]
    image, text = body["messages"][1]["content"]
    assert "Question: the" in text["text"]
    assert "% of the image" in text["text"]
    data = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(data)).size == (112, 112)
    again = rate_source(source, client(server.url), rating_cache(tmp_path / "c.jsonl"))
    assert again.by_id == ratings.by_id
    assert len(server.requests) == 12
    rate_source(ShapeScenes(size=1), client(server.url, model="other"), rating_cache(tmp_path / "c.jsonl"))
    assert len(server.requests) == 13


def test_what_passes_is_tried_again(tmp_path: Path, serve: Callable[..., Server]) -> None:
    troubles: list[Any] = [
        (429, {"Retry-After": "3"}, b"slow down"),
        (503, {}, b"loading"),
        None,
        (200, {}, b"<html>"),
        (200, {}, chat("I think it is hard.")),
        (200, {}, chat(json.dumps({"scene": 4, "seg": 11, "language": 2}))),
        (200, {}, chat(json.dumps({**GOOD, "extra": 1}))),
        (200, {}, chat(None)),
        (200, {}, chat(json.dumps(GOOD))),
    ]
    server = serve(lambda number, body: troubles[number])
    waits: list[float] = []
    asked = client(server.url, waits, retries=8, backoff=0.5)
    assert asked.ask(rating_messages(ShapeScenes(size=1)[0]), SCHEMA, "rating", parse_rating) == GOOD
    assert waits == [3.0, 6.0, 12.0, 24.0, 48.0, 60.0, 60.0, 60.0]
    temperatures = [body["temperature"] for _, body in server.requests]
    assert temperatures[0] == 0
    assert min(temperatures[1:]) > 0


def test_garbage_costs_its_sample_alone(tmp_path: Path, serve: Callable[..., Server]) -> None:
    source = ShapeScenes(size=4)
    poisoned = source[2].question

    def answer(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        bad = f"Question: {poisoned}\n" in body["messages"][1]["content"][1]["text"]
        return 200, {}, chat("no" if bad else json.dumps(GOOD))

    ratings = rate_source(source, client(serve(answer).url), rating_cache(tmp_path / "c.jsonl"))
    assert len(ratings.by_id) == 3
    assert list(ratings.problems) == [source[2].id]
    assert "not JSON: 'no'" in ratings.problems[source[2].id]


@pytest.mark.parametrize("status", [401, 404, 302])
def test_a_refusal_stops_at_once(tmp_path: Path, serve: Callable[..., Server], status: int) -> None:
    server = serve(lambda number, body: (status, {"Location": "http://127.0.0.1:9/"}, b"wrong\nkey"))
    ratings = rate_source(ShapeScenes(size=50), client(server.url, concurrency=1), rating_cache(tmp_path / "c.jsonl"))
    assert ratings.stopped is not None
    assert f"HTTP {status}: wrong key" in ratings.stopped
    assert len(server.requests) <= 2


def test_a_server_that_hangs_runs_into_the_timeout(serve: Callable[..., Server]) -> None:
    release = threading.Event()

    def answer(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if number == 0:
            release.wait(5)
        return 200, {}, chat(json.dumps(GOOD))

    server = serve(answer)
    started = time.monotonic()
    assert client(server.url, timeout=0.2).ask([], SCHEMA, "rating", parse_rating) == GOOD
    release.set()
    assert time.monotonic() - started < 3


def arguments(server: str, output: Path, *more: str) -> list[str]:
    fixed = ["--source", "ShapeScenes", "--source.size=10", f"--server={server}", "--model=m", f"--output={output}"]
    return [*fixed, "--retries=1", "--backoff=0.01", "--concurrency=2", *more]


def test_a_server_that_dies_and_comes_back(
    tmp_path: Path, serve: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "difficulty.json"
    server = serve(lambda number, body: (200, {}, chat(json.dumps(GOOD))) if number < 4 else None)
    assert rate_difficulty.main(arguments(server.url, output)) == 1
    error = capsys.readouterr().err
    assert "6 of 10 samples are unrated" in error
    assert "the server was given up" in error
    assert not output.exists()
    with open(f"{output}.cache.jsonl", "ab") as file:
        file.write(b'{"key": "torn')
    alive = serve(lambda number, body: (200, {}, chat(json.dumps({**GOOD, "language": 8}))))
    assert rate_difficulty.main(arguments(alive.url, output, "--aggregate=max")) == 0
    assert len(alive.requests) == 6
    assert sorted(read_difficulties(output).values()) == [6.0] * 4 + [8.0] * 6
    assert json.loads(output.read_text())[0] == {
        "image_id": "shapes-train-0-0",
        "difficulty_score_model": 6.0,
        **{name: float(value) for name, value in GOOD.items()},
    }
    assert "6.00 to 8.00" in capsys.readouterr().out


def test_nobody_at_the_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert rate_difficulty.main(arguments(f"http://127.0.0.1:{port}/v1", tmp_path / "d.json")) == 1
    assert "10 of 10 samples are unrated" in capsys.readouterr().err
    assert rate_difficulty.main(arguments("file:///etc/passwd", tmp_path / "d.json")) == 2
    assert "http or https" in capsys.readouterr().err


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"key": "a", "id": "b", "rating": {"scene": 1}}\n')
    with pytest.raises(ValueError, match=r"c\.jsonl:1: not a cached rating"):
        rating_cache(tmp_path / "c.jsonl")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"scene": 1, "seg": 1}', '{"scene":"1","seg":1,"language":1}', "[" * 9999]
)
def test_bad_ratings(text: str) -> None:
    with pytest.raises(ValueError, match="rater"):
        parse_rating(text)


def test_aggregates() -> None:
    parts = {"scene": 1.0, "seg": 3.0, "language": 8.0}
    assert [aggregate_rating(parts, how) for how in ("mean", "max", "median")] == [4.0, 8.0, 3.0]


def test_the_mask_in_words() -> None:
    mask = np.zeros((100, 200), dtype=bool)
    mask[80:90, 150:170] = True
    sample = Sample("a", Image.new("RGB", (200, 100)), "q", mask)
    assert describe_mask(sample) == (
        "The correct mask covers 1.00 % of the image, lies at the bottom right, and reaches from 75.0 % to 85.0 % of "
        "the width and from 80.0 % to 90.0 % of the height."
    )
    assert "Nothing" in describe_mask(Sample("a", sample.image, "q", mask & False))
    assert "not been annotated" in describe_mask(Sample("a", sample.image, "q"))


def test_success_becomes_difficulty_by_quantile() -> None:
    difficulty = success_to_difficulty({"a": 0.0, "b": 1.0, "c": 0.5, "d": 0.5})
    assert difficulty == {"a": 8.875, "b": 2.125, "c": 5.5, "d": 5.5}
    many = success_to_difficulty({str(i): i / 1000 for i in range(1000)})
    assert min(many.values()) >= 1
    assert max(many.values()) <= 10
    assert success_to_difficulty({"a": 1.0}) == {"a": 5.5}
    assert success_to_difficulty({}) == {}
    with pytest.raises(ValueError, match="'a'"):
        success_to_difficulty({"a": float("nan")})


def test_the_correlation_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, values in (("one", {"a": 1, "b": 4, "c": 9, "x": 3}), ("two", {"a": 2, "b": 3, "c": 10})):
        rows = [{"image_id": key, "difficulty_score_model": value} for key, value in values.items()]
        (tmp_path / name).write_text(json.dumps(rows))
    assert compare_difficulty.main([str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["shared"], report["only_first"], report["only_second"]) == (3, 1, 0)
    assert (report["spearman"], report["kendall"]) == (pytest.approx(1), pytest.approx(1))
    assert report["mean_absolute_difference"] == pytest.approx(1)
    assert report["levels"]["medium"] == {"easy": 1, "medium": 0, "hard": 0}
    (tmp_path / "two").write_text("[]")
    assert compare_difficulty.main([str(tmp_path / "one"), str(tmp_path / "two")]) == 2
