"""Difficulties by a real vLLM server: a tiny model answers in the schema, and a server may die, babble or limit."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pixelthink.data.difficulty import read_difficulties
from tests.http_server import Server as ScriptedServer
from tests.servers import KEY, KEY_VARIABLE, Server
from tools import rate_difficulty

pytestmark = pytest.mark.slow


def arguments(address: str, output: Path, size: int, *more: str) -> list[str]:
    return [
        *("--source", "ShapeScenes", f"--source.size={size}", f"--server={address}/v1", "--model=policy"),
        *(f"--output={output}", f"--api_key_variable={KEY_VARIABLE}", "--retries=1", "--backoff=0.05", *more),
    ]


def test_structured_output_makes_a_tiny_model_rate(
    rollout_servers: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    output = tmp_path / "difficulty.json"
    assert rate_difficulty.main(arguments(rollout_servers[0].url, output, 6)) == 0
    rows = json.loads(output.read_text())
    assert [row["image_id"] for row in rows] == [f"shapes-train-0-{i}" for i in range(6)]
    for row in rows:
        parts = [row[name] for name in ("scene", "seg", "language")]
        assert all(part in range(1, 11) for part in parts)
        assert row["difficulty_score_model"] == pytest.approx(sum(parts) / 3)
    assert len(read_difficulties(output)) == 6


def test_a_server_that_wants_a_key_gets_none(
    rollout_servers: tuple[Server, Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert rate_difficulty.main(arguments(rollout_servers[0].url, tmp_path / "d.json", 3)) == 1
    assert "HTTP 401" in capsys.readouterr().err
    assert not (tmp_path / "d.json").exists()


def test_an_answer_that_breaks_off_is_no_rating(
    rollout_servers: tuple[Server, Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert rate_difficulty.main(arguments(rollout_servers[0].url, tmp_path / "d.json", 2, "--max_tokens=3")) == 1
    error = capsys.readouterr().err
    assert "2 of 2 samples are unrated" in error
    assert "not JSON" in error


def test_limits_and_garbage_on_the_way_to_the_server(
    rollout_servers: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three requests one is limited, one answered with garbage, and one handed on."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)

    def answer(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if number % 3 == 0:
            return 429, {"Retry-After": "0"}, b"slow down"
        if number % 3 == 1:
            return 200, {}, b"<html>a proxy's page</html>"
        reply = rollout_servers[0].ask("POST", "/v1/chat/completions", json=body)
        return reply.status_code, {}, reply.content

    between = ScriptedServer(answer)
    try:
        address = between.url.removesuffix("/v1")
        options = arguments(address, tmp_path / "d.json", 3, "--retries=8", "--concurrency=1")
        assert rate_difficulty.main(options) == 0
    finally:
        between.close()
    assert len(between.requests) == 9
    assert len(read_difficulties(tmp_path / "d.json")) == 3


def test_a_server_that_dies_in_the_middle(
    rollout_servers: tuple[Server, Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    steady, mortal = rollout_servers
    output = tmp_path / "difficulty.json"
    cache = Path(f"{output}.cache.jsonl")

    def kill_after_three() -> None:
        while not cache.exists() or len(cache.read_bytes().splitlines()) < 3:
            time.sleep(0.01)
        mortal.kill()

    killer = threading.Thread(target=kill_after_three, daemon=True)
    killer.start()
    size = 400
    assert rate_difficulty.main(arguments(mortal.url, output, size, "--concurrency=2")) == 1
    killer.join(10)
    error = capsys.readouterr().err
    assert "samples are unrated" in error
    assert "the server was given up" in error
    assert not output.exists()
    known = len(cache.read_bytes().splitlines())
    assert 3 <= known < size
    fewer = known + 2
    assert rate_difficulty.main(arguments(steady.url, output, fewer)) == 0  # asks for what is missing alone
    assert len(cache.read_bytes().splitlines()) == fewer
    assert len(read_difficulties(output)) == fewer
