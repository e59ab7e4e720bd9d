"""The front of rollout servers: who and what gets past it. Nothing listens behind it here: what passes ends in 502."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="comes with vLLM")

from starlette.testclient import TestClient

from pixelthink.rollouts.vllm_client import is_loopback
from pixelthink.serving.__main__ import main
from pixelthink.serving.front import Front
from pixelthink.serving.options import ServeOptions
from pixelthink.serving.rules import rules
from pixelthink.serving.vllm_process import command

KEY = "0123456789abcdef-key"
PIXEL = "data:image/png;base64,iVBORw0KGgo="
GENERATE = {
    "token_ids": [1, 2],
    "content_parts": [{"type": "image_url", "url": PIXEL}],
    "sampling_params": {"max_tokens": 3, "logit_bias": {"4": -100.0}, "seed": 2**61, "stop_token_ids": [5]},
    "return_token_ids": True,
}
CHAT = {
    "model": "policy",
    "messages": [
        {"role": "system", "content": "rate"},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": PIXEL}}, {"type": "text", "text": "?"}],
        },
    ],
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
}
INIT = {
    "master_address": "10.0.0.1",
    "master_port": 29600,
    "rank_offset": 1,
    "world_size": 2,
    "packed": True,
    "packed_buffer_size_bytes": 2**30,
    "packed_num_buffers": 2,
}
UPDATE = {"names": ["w"], "dtype_names": ["bfloat16"], "shapes": [[2, 3]]}


@pytest.fixture
def weights_folder(tmp_path: Path) -> Path:
    (tmp_path / "weights" / "run-1").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "weights"


def client(weights_folder: Path | None, nccl: bool = False, key: str | None = KEY) -> TestClient:
    front = Front(Path("/nonexistent/vllm.sock"), rules(weights_folder, nccl), key, max_body_bytes=4000)
    return TestClient(front.application(), headers={"Authorization": f"Bearer {key}"} if key else {})


def passing(weights_folder: Path) -> list[tuple[str, str, Any]]:
    reload = {"method": "take_weights", "kwargs": {"weights_path": str(weights_folder / "run-1")}}
    return [
        *(("GET", path, None) for path in ("/health", "/v1/models", "/weight_info", "/get_world_size")),
        ("POST", "/inference/v1/generate", GENERATE),
        ("POST", "/v1/chat/completions", CHAT),
        ("POST", "/collective_rpc", reload),
        ("POST", "/update_weight_version", {"new_version": "3fa1:17"}),
        *(("POST", f"/reset_{cache}_cache", {}) for cache in ("prefix", "mm", "encoder")),
        ("POST", "/init_weight_transfer_engine", {"init_info": INIT}),
        ("POST", "/start_weight_update", {}),
        ("POST", "/update_weights", {"update_info": UPDATE}),
        ("POST", "/finish_weight_update", {}),
    ]


def test_what_the_engine_sends_passes_with_the_key_and_nothing_passes_without(weights_folder: Path) -> None:
    front = client(weights_folder, nccl=True)
    requests = passing(weights_folder)
    assert {(method, path) for method, path, _ in requests} == set(rules(weights_folder, True))
    for method, path, body in requests:
        assert front.request(method, path, json=body).status_code == 502, path
        for wrong in (
            "",
            "Bearer",
            "Bearer x" + KEY,
            f"Basic {KEY}",
            f"Bearer {KEY[:-1]}",
            "Bearer é".encode("latin-1"),
        ):
            reply = front.request(method, path, json=body, headers={"Authorization": wrong})
            assert (reply.status_code, reply.json()["error"]["message"]) == (401, "the key is missing or wrong"), path


@pytest.mark.parametrize(
    "route",
    [
        *(("GET", path) for path in ("/", "/docs", "/openapi.json", "/metrics", "/ping", "/inference/v1/generate")),
        *(("POST", path) for path in ("/sleep", "/wake_up", "/pause", "/shutdown", "/v1/load_lora_adapter", "/health")),
        *(
            ("POST", path)
            for path in ("/v1//chat/completions", "/collective_rpc/", "/%63ollective_rpc/x", "/v1/embeddings")
        ),
        *(("DELETE", "/v1/models"), ("OPTIONS", "/collective_rpc"), ("PUT", "/update_weights")),
    ],
)
def test_other_routes_do_not_exist(weights_folder: Path, route: tuple[str, str]) -> None:
    assert client(weights_folder, nccl=True).request(*route).status_code == 404
    assert client(weights_folder, nccl=True).request(*route, headers={"Authorization": ""}).status_code == 401


def test_control_routes_exist_only_where_they_are_asked_for(weights_folder: Path) -> None:
    for method, path, body in passing(weights_folder)[6:]:
        assert client(None).request(method, path, json=body).status_code == 404
    assert client(weights_folder).post("/update_weights", json={"update_info": UPDATE}).status_code == 404
    assert client(None, nccl=True).post("/collective_rpc", json={}).status_code == 404


def changed(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A deep copy with one value replaced; the path's parts are keys or indices."""
    copy = json.loads(json.dumps(body))
    place = copy
    *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in way:
        place = place[part]
    place[last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("token_ids", []),
        ("token_ids", "12"),
        ("token_ids", [1, -2]),
        ("token_ids", [1.5]),
        ("content_parts/0/url", "http://169.254.169.254/latest"),
        ("content_parts/0/url", "file:///etc/passwd"),
        ("content_parts/0/url", "data:text/html;base64,AAAA"),
        ("content_parts/0/url", PIXEL + "\n"),
        ("content_parts/0/type", "video_url"),
        ("sampling_params/max_tokens", 0),
        ("sampling_params/n", 0),
        ("sampling_params/temperature", -1.0),
        ("sampling_params/logprobs", 1000),
        ("sampling_params/extra_args", {"a": 1}),
        ("features", {"mm_hashes": {}, "mm_placeholders": {}, "kwargs_data": {"image": ["gASVAAAA"]}}),
        ("stream", True),
        ("kv_transfer_params", {}),
    ],
)
def test_malformed_generation_is_refused(path: str, value: Any) -> None:
    reply = client(None).post("/inference/v1/generate", json=changed(GENERATE, path, value))
    assert reply.status_code == 400
    message = reply.json()["error"]["message"]
    assert message.startswith(path.replace("/", "."))
    assert "etc" not in message  # what was sent is not repeated


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("messages", []),
        ("messages/1/content/0/image_url/url", "http://127.0.0.1/x.png"),
        ("messages/0/role", "tool"),
        ("chat_template", "{{ 1 }}"),
        ("stream", True),
    ],
)
def test_malformed_chats_are_refused(path: str, value: Any) -> None:
    assert client(None).post("/v1/chat/completions", json=changed(CHAT, path, value)).status_code == 400


@pytest.mark.parametrize(
    "change",
    [
        {"method": "reload_weights"},
        {"method": "__init__"},
        {"args": ["x"]},
        {"timeout": 1},
        {"kwargs": {"weights_path": "weights"}},
        {"kwargs": {"weights_path": "run-1", "weights_iterator": []}},
        {"kwargs": {}},
    ],
)
def test_remote_calls_other_than_taking_weights_are_refused(weights_folder: Path, change: dict[str, Any]) -> None:
    good = passing(weights_folder)[6][2]
    assert client(weights_folder).post("/collective_rpc", json={**good, **change}).status_code == 400


@pytest.mark.parametrize("place", [".", "../elsewhere", "run-1/../../elsewhere", "missing", "link"])
def test_weights_come_from_below_the_folder_only(weights_folder: Path, place: str) -> None:
    (weights_folder / "link").symlink_to(weights_folder.parent / "elsewhere")
    body = {"method": "take_weights", "kwargs": {"weights_path": f"{weights_folder}/{place}"}}
    reply = client(weights_folder).post("/collective_rpc", json=body)
    assert reply.status_code == 400
    assert "weights_path" in reply.json()["error"]["message"]


def test_pickled_handles_and_odd_bodies_are_refused(weights_folder: Path) -> None:
    front = client(weights_folder, nccl=True)
    handles = {"update_info": {**UPDATE, "ipc_handles_pickled": "gASVAAAA"}}
    assert front.post("/update_weights", json=handles).status_code == 400
    assert front.post("/reset_prefix_cache?reset_running_requests=true", json={}).status_code == 400
    assert front.post("/reset_prefix_cache", json={"a": 1}).status_code == 400
    assert front.post("/update_weight_version", json={"new_version": "a\nb"}).status_code == 400
    for content in (b"{", b"[]", b"null", b"\xff", b"[" * 3000):
        headers = {"Content-Type": "application/json"}
        assert front.post("/update_weight_version", content=content, headers=headers).status_code == 400
    assert front.post("/v1/chat/completions", content=json.dumps(CHAT)).status_code == 415  # as a web page would
    assert front.request("GET", "/health", content=b"x").status_code == 400
    long = {**CHAT, "messages": [{"role": "user", "content": "x" * 5000}]}
    assert front.post("/v1/chat/completions", json=long).status_code == 413


def test_without_a_key_everyone_on_loopback_may() -> None:
    assert client(None, key=None).get("/health").status_code == 502


@pytest.mark.parametrize(
    ("arguments", "key", "message"),
    [
        (["--host=0.0.0.0"], None, "reachable from other machines"),
        (["--host=::"], None, "reachable from other machines"),
        (["--host=my-machine"], "", "reachable from other machines"),
        (["--host=0.0.0.0"], "short", "shorter than 16 characters"),
        (["--weights_folder=/nonexistent"], None, "there is no folder '/nonexistent'"),
        (["--ssl_certfile=a"], None, "go together"),
        (["--vllm_args=[--port=1]"], None, "--port is the front's business"),
        (["--max_body_mb=0"], None, "--max_body_mb"),
        (["--dtype=int8"], None, "dtype"),
    ],
)
def test_bad_calls_end_with_one_line(
    arguments: list[str],
    key: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("PIXELTHINK_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("PIXELTHINK_API_KEY", key)
    assert main(["--model=assets/tiny_policy", "--port=0", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_addresses_of_this_machine() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.9.9.9"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "127.0.0.1.evil.org", ""))


def test_vllm_listens_on_the_socket_alone() -> None:
    line = command(ServeOptions("m", max_model_len=512, nccl=True, vllm_args=["--seed=1"]), Path("/private/vllm.sock"))
    assert line[line.index("--uds") + 1] == "/private/vllm.sock"
    assert not {"--host", "--port"} & set(line)
    assert line[line.index("--load-format") + 1] == "safetensors"
    assert line[line.index("--weight-transfer-config") + 1] == '{"backend": "nccl"}'
    assert line[-1] == "--seed=1"
