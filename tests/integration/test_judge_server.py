"""RScore by a real vLLM server: a tiny model answers in the schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixelthink.judges.base import JudgedSample
from pixelthink.judges.openai import OpenAIJudge
from tests.servers import KEY, KEY_VARIABLE, Server

pytestmark = pytest.mark.slow


def test_structured_output_makes_a_tiny_model_judge(
    rollout_servers: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    cache = str(tmp_path / "cache.jsonl")
    judge = OpenAIJudge(f"{rollout_servers[0].url}/v1", "policy", cache, KEY_VARIABLE, retries=1, backoff=0.05)
    judge.setup()
    samples = [JudgedSample(f"s{n}", "the red circle", f"i see red a{n} small.") for n in range(4)]
    verdicts = [future.result() for future in judge.submit(samples)]
    judge.close()
    assert [verdict.failure for verdict in verdicts] == [None] * 4, verdicts
    assert all(verdict.score in range(11) for verdict in verdicts)
    nowhere = OpenAIJudge("http://127.0.0.1:9/v1", "policy", cache, KEY_VARIABLE, retries=0)
    nowhere.setup()
    assert [nowhere.rate(sample) for sample in samples] == verdicts  # from the cache alone
