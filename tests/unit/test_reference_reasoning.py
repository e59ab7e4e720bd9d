"""Reference reasoning from a server: asked for once, again where an answer is no use, and read back into samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pixelthink.data.reference_reasoning import ReasoningOptions, parse_reasoning, reasoning_question
from pixelthink.data.sources.reasonseg_diff import AnnotationFields, ReasonSegDiff
from pixelthink.data.sources.shape_scenes import ShapeScenes
from tests.http_server import Server
from tools import write_reference_reasoning

BOTH = {"short": "the red one.", "long": "there are two shapes. one is red. the red one is meant."}


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


def run(server: Server, output: Path, *more: str) -> int:
    fixed = ["--source=ShapeScenes", "--source.size=6", f"--server={server.url}", "--model=m", f"--output={output}"]
    options = ["--retries=1", "--backoff=0.01", "--concurrency=2", "--short_words=7", "--long_words=22", *more]
    return write_reference_reasoning.main([*fixed, *options])


def test_every_sample_gets_both_and_the_samples_can_have_them(
    tmp_path: Path, serve: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "reasoning.jsonl"

    def answer(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        question = body["messages"][1]["content"][1]["text"].splitlines()[0].removeprefix("Question: ")
        return 200, {}, chat(json.dumps({**BOTH, "long": f"{BOTH['long']} {question}"}))

    server = serve(answer)
    assert run(server, output) == 0
    assert "6 samples, median words: short 3, long " in capsys.readouterr().out
    source = ShapeScenes(size=6)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert rows == [
        {"id": s.id, "question": s.question, "short": BOTH["short"], "long": f"{BOTH['long']} {s.question}"}
        for s in (source[index] for index in range(6))
    ]
    body = server.requests[0][1]
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["short", "long"]
    assert body["max_tokens"] == 600
    assert "at most 7 words" in body["messages"][0]["content"]
    assert "The correct mask covers" in body["messages"][1]["content"][1]["text"]
    assert body["messages"][1]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")

    fields = AnnotationFields(id="id", difficulty=None, reasoning={"short": "short", "long": "long"})
    made = ReasonSegDiff(source, str(output), fields)
    made.setup()
    assert made[3].reasoning["short"] == "the red one."
    assert (made[3].difficulty, made[3].meta) == (source[3].difficulty, source[3].meta)


def test_an_answer_that_is_no_use_is_asked_for_again_and_what_is_known_is_not(
    tmp_path: Path, serve: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "reasoning.jsonl"
    swapped = {"short": BOTH["long"], "long": BOTH["short"]}
    first = serve(lambda number, body: (200, {}, chat(json.dumps(BOTH if number < 3 else swapped))))
    assert run(first, output, "--concurrency=1") == 1
    assert len(first.requests) == 3 + 3 * 2
    error = capsys.readouterr().err
    assert "the short reasoning has 12 words, the long one 3" in error
    assert "error: 3 of 6 samples are without reasoning: 'shapes-train-0-3'" in error
    assert not output.exists()
    second = serve(lambda number, body: (200, {}, chat(json.dumps(BOTH))))
    assert run(second, output) == 0
    assert len(second.requests) == 3
    assert len(output.read_text().splitlines()) == 6


def test_lengths_far_from_those_asked_for_are_asked_again(
    tmp_path: Path, serve: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    """Three words are fewer than twelve, but more than twice one."""
    output = tmp_path / "reasoning.jsonl"
    terse = {**BOTH, "short": "red."}
    server = serve(lambda number, body: (200, {}, chat(json.dumps(BOTH if number == 0 else terse))))
    assert run(server, output, "--concurrency=1", "--short_words=1") == 0
    assert len(server.requests) == 7
    assert [json.loads(line)["short"] for line in output.read_text().splitlines()] == ["red."] * 6
    other = tmp_path / "other.jsonl"
    always = serve(lambda number, body: (200, {}, chat(json.dumps(BOTH))))
    assert run(always, other, "--concurrency=1", "--short_words=1") == 1
    assert "the short reasoning has 3 words, more than twice the 1 asked for" in capsys.readouterr().err
    assert not other.exists()
    assert run(always, output, "--short_words=7") == 0  # asked for other lengths, the kept answers do not count
    assert json.loads(output.read_text().splitlines()[0])["short"] == BOTH["short"]


@pytest.mark.parametrize(
    ("short", "long", "message"),
    [
        (20, 50, None),
        (1, 200, None),
        (21, 100, "the short reasoning has 21 words, more than twice the 10 asked for"),
        (10, 49, "the long reasoning has 49 words, far from the 100 asked for"),
        (10, 201, "the long reasoning has 201 words, far from the 100 asked for"),
        (20, 20, "the short reasoning has 20 words, the long one 20"),
    ],
)
def test_the_bounds_of_lengths(short: int, long: int, message: str | None) -> None:
    options = ReasoningOptions(server="http://127.0.0.1:9/v1", model="m", short_words=10, long_words=100)
    answer = {"short": " ".join(["a"] * short), "long": " ".join(["b"] * long)}
    parse = reasoning_question(options).parse
    if message is None:
        assert parse(json.dumps(answer)) == answer
    else:
        with pytest.raises(ValueError, match=f"^{message}$"):
            parse(json.dumps(answer))


def test_a_server_that_refuses_and_wrong_options(
    tmp_path: Path, serve: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "reasoning.jsonl"
    server = serve(lambda number, body: (401, {}, b"wrong key"))
    assert run(server, output, "--concurrency=1") == 1
    assert "the server was given up: " in capsys.readouterr().err
    assert len(server.requests) == 1
    assert run(server, output, "--long_words=7") == 2
    assert "short_words must be at least 1 and less than long_words" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("I think", "not JSON"),
        ("[" * 9999, "not JSON"),
        ("[]", "exactly short and long"),
        (json.dumps({**BOTH, "more": "x"}), "exactly short and long"),
        (json.dumps({**BOTH, "short": " "}), "the short reasoning is empty"),
        (json.dumps({**BOTH, "long": 3}), "the long reasoning is empty or no text"),
    ],
)
def test_answers_that_are_no_reasoning(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_reasoning(text)
