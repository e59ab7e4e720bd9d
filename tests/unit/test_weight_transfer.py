"""Handing weights over, as far as it goes without a server: pieces, complete folders only, and a bound on retries."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pixelthink.rollouts import weight_transfer
from pixelthink.rollouts.vllm_client import RetryPolicy, RolloutServer, ServerPool, ServerRefused, ServerUnavailable
from pixelthink.rollouts.weight_transfer import FileTransfer, shards
from tests.servers import free_port


def pool_of_nobody() -> ServerPool:
    server = RolloutServer(f"http://127.0.0.1:{free_port()}", None, timeout=1.0)
    return ServerPool([server], RetryPolicy(max_retries=0, backoff=0.0), concurrency=1)


def test_pieces_keep_order_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_transfer, "SHARD_BYTES", 40)
    weights = [("a", torch.ones(6)), ("b", torch.ones(4)), ("c", torch.ones(20)), ("d", torch.ones(1))]
    assert [list(shard) for shard in shards(weights)] == [["a", "b"], ["c"], ["d"]]
    assert list(shards([])) == []


def test_a_folder_appears_only_when_complete(tmp_path: Path) -> None:
    def breaking() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.ones(3)
        raise OSError("the disk is full")

    transfer = FileTransfer(tmp_path, torch.float32)
    with pytest.raises(OSError, match="the disk is full"):
        transfer.send(breaking(), "run:1", pool_of_nobody())
    assert list(tmp_path.iterdir()) == []


def test_what_no_server_took_is_there_in_the_servers_precision_until_the_end(tmp_path: Path) -> None:
    transfer = FileTransfer(tmp_path, torch.bfloat16)
    with pytest.raises(ServerUnavailable, match="Connection refused"):
        transfer.send([("a", torch.tensor([1.0, 1.0 + 2**-10]))], "run:1", pool_of_nobody())
    written = load_file(tmp_path / "run-1" / "model-00000.safetensors")
    assert torch.equal(written["a"], torch.ones(2, dtype=torch.bfloat16))
    del transfer
    assert list(tmp_path.iterdir()) == []


def test_retries_are_bounded_and_not_wasted_on_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    asked: list[int] = []

    def busy(attempt: int) -> str:
        asked.append(attempt)
        if attempt < 2:
            raise ServerUnavailable("busy")
        return "done"

    assert RetryPolicy(max_retries=2, backoff=0.5).call(busy) == "done"
    assert (asked, waits) == ([0, 1, 2], [0.5, 1.0])
    with pytest.raises(ServerUnavailable, match=r"busy \(tried 2 times\)"):
        RetryPolicy(max_retries=1, backoff=0.5).call(busy)

    def refuse(attempt: int) -> str:
        asked.append(attempt)
        raise ServerRefused("no")

    asked.clear()
    with pytest.raises(ServerRefused):
        RetryPolicy(max_retries=9).call(refuse)
    assert asked == [0]
    with pytest.raises(ValueError, match="must not be negative"):
        RetryPolicy(max_retries=-1)


class Answering(RolloutServer):
    """Answers with one completion per list of version tags."""

    def __init__(self, *versions: list[str] | None) -> None:
        super().__init__("http://127.0.0.1:9", None, timeout=1.0)
        self.versions = versions

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        spans = [None if tags is None else [{"version": tag} for tag in tags] for tags in self.versions]
        return {"choices": [{"weight_versions": of_choice} for of_choice in spans]}


def test_answers_under_the_tag_of_this_run_are_used() -> None:
    pool = ServerPool([Answering(["run:1"], ["run:1", "run:1"])], RetryPolicy(0), concurrency=1)
    pool.tag = "run:1"
    assert len(pool.generate([{}])[0]["choices"]) == 2
    assert len(pool.score_on_each({})) == 1


@pytest.mark.parametrize("versions", [[None], [[]], [], [["run:0"]], [["run:1"], None], [["run:1", "run:2"]]])
def test_answers_under_no_tag_or_another_are_errors(versions: list[list[str] | None]) -> None:
    pool = ServerPool([Answering(*versions)], RetryPolicy(0), concurrency=1)
    pool.tag = "run:1"
    for ask in (lambda: pool.generate([{}]), lambda: pool.score_on_each({})):
        with pytest.raises(ServerRefused, match=r"answered with weights '.+' instead of 'run:1'"):
            ask()


def test_servers_without_weights_of_this_run_are_an_error() -> None:
    pool = ServerPool([Answering(["somebody:1"])], RetryPolicy(0), concurrency=1)
    for ask in (lambda: pool.generate([{}]), lambda: pool.score_on_each({})):
        with pytest.raises(RuntimeError, match="hold no weights of this run"):
            ask()
