"""Rollouts by real vLLM servers: the policy's weights arrive, strangers are refused, and a server may die."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pixelthink.data.collate import Collate
from pixelthink.data.prompts import ShortPrompt
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.rollouts.vllm_client import RetryPolicy, RolloutServer, ServerRefused, ServerUnavailable
from pixelthink.rollouts.vllm_server import VLLMServerEngine, data_uri
from pixelthink.types import PromptBatch, RolloutBatch
from tests.servers import KEY, KEY_VARIABLE, Server, free_port
from tests.support import ROOT
from tools import estimate_difficulty

pytestmark = pytest.mark.slow
SAMPLING = SamplingConfig(group_size=4, max_new_tokens=60)
RETRY = RetryPolicy(max_retries=2, backoff=0.05, timeout=60)


@pytest.fixture(scope="module")
def backbone() -> Qwen25VL:
    backbone = Qwen25VL(str(ROOT / "assets/tiny_policy"), dtype="float32", local_files_only=True)
    backbone.setup()
    return backbone


@pytest.fixture(scope="module")
def fresh(backbone: Qwen25VL) -> nn.Module:
    return backbone.load_model().eval()


@pytest.fixture
def policy(fresh: nn.Module) -> nn.Module:
    return copy.deepcopy(fresh)


@pytest.fixture
def random_policy(fresh: nn.Module) -> nn.Module:
    """The same shape with random weights, whose small logits leave little to rounding."""
    torch.manual_seed(0)
    return type(fresh)(fresh.config).eval()


@pytest.fixture(scope="module")
def batch() -> PromptBatch:
    source = ShapeScenes(size=6)
    return Collate(ShortPrompt(), (112, 112), "pixels")([source[i] for i in range(6)])


@pytest.fixture
def engine(
    rollout_servers: tuple[Server, Server], backbone: Qwen25VL, policy: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> Iterator[VLLMServerEngine]:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    folder = str(rollout_servers[0].weights_folder)
    made = VLLMServerEngine([s.url for s in rollout_servers], weights_folder=folder, retry=RETRY)
    made.setup(backbone, policy)
    yield made
    made.close()


def worst_difference(backbone: Qwen25VL, policy: nn.Module, rollout: RolloutBatch) -> float:
    """Largest |difference| of a token's log-probability, engine against a transformers forward with the image."""
    tokens = [torch.tensor(c.token_ids) for c in rollout.completions]
    index = [i // rollout.group_size for i in range(len(tokens))]
    with torch.no_grad():
        scores = backbone.score(policy, backbone.encode(rollout.prompts), tokens, index).logprobs
    return max(
        float((torch.tensor(c.logprobs) - row[: len(c.logprobs)]).abs().max())
        for c, row in zip(rollout.completions, scores, strict=True)
    )


def step(backbone: Qwen25VL, policy: nn.Module, rollout: RolloutBatch, optimizer: torch.optim.Optimizer) -> None:
    """An optimizer step that makes a rollout's completions likelier."""
    tokens = [torch.tensor(c.token_ids) for c in rollout.completions]
    index = [i // rollout.group_size for i in range(len(tokens))]
    scores = backbone.score(policy, backbone.encode(rollout.prompts), tokens, index)
    (-scores.logprobs.mean()).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_log_probabilities_are_the_policys_before_and_after_each_step(
    engine: VLLMServerEngine, backbone: Qwen25VL, random_policy: nn.Module, batch: PromptBatch
) -> None:
    policy = random_policy
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    for version in range(4):
        engine.sync(backbone.sync_weights(policy), version)
        rollout = engine.generate(batch, SAMPLING, seed=version)
        assert (rollout.policy_version, len(rollout.completions)) == (version, 24)
        assert worst_difference(backbone, policy, rollout) < 1e-5
        scored = engine.score(rollout)
        expected = [tuple(encoded.token_ids.tolist()) for encoded in backbone.encode(batch.prompts)]
        assert [score.prompt_token_ids for score in scored[::4]] == expected
        for score, completion in zip(scored, rollout.completions, strict=True):
            assert score.logprobs == pytest.approx(completion.logprobs, abs=1e-5)
        step(backbone, policy, rollout, optimizer)
        assert worst_difference(backbone, policy, rollout) > 1e-2  # nobody synced


def test_completions_follow_the_seed_and_leave_images_out(
    engine: VLLMServerEngine,
    backbone: Qwen25VL,
    policy: nn.Module,
    random_policy: nn.Module,
    batch: PromptBatch,
) -> None:
    engine.sync(backbone.sync_weights(policy), 0)
    first = engine.generate(batch, SAMPLING, seed=3)
    assert [c.token_ids for c in engine.generate(batch, SAMPLING, seed=3).completions] == [
        c.token_ids for c in first.completions
    ]
    assert [c.token_ids for c in engine.generate(batch, SAMPLING, seed=4).completions] != [
        c.token_ids for c in first.completions
    ]
    half = PromptBatch(batch.prompts[1::2], (1, 3, 5))  # as a second process would
    assert [c.token_ids for c in engine.generate(half, SAMPLING, seed=3).completions] == [
        c.token_ids for i in (1, 3, 5) for c in first.completions[4 * i : 4 * i + 4]
    ]
    engine.sync(backbone.sync_weights(random_policy), 1)
    hot = engine.generate(batch, SamplingConfig(group_size=16, max_new_tokens=60, temperature=2.0), seed=0)
    tokens = {token for c in hot.completions for token in c.token_ids}
    assert len(tokens) > 400
    assert not tokens & set(backbone.forbidden_token_ids)
    assert all(c.uncertainty is not None and 0 <= c.uncertainty <= 1 for c in hot.completions)


def test_two_servers_share_the_load_and_the_old_weights_are_removed(
    engine: VLLMServerEngine, backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch
) -> None:
    assert engine.pool is not None
    for version in range(2):
        engine.sync(backbone.sync_weights(policy), version)
        assert len(list(Path(str(engine.weights_folder)).iterdir())) == 1
    engine.generate(batch, SAMPLING, seed=0)
    assert [server.answered for server in engine.pool.servers] == [3, 3]
    engine.close()
    assert list(Path(str(engine.weights_folder)).iterdir()) == []


def test_servers_with_different_weights_are_noticed(
    engine: VLLMServerEngine, backbone: Qwen25VL, policy: nn.Module, batch: PromptBatch, tmp_path: Path
) -> None:
    engine.sync(backbone.sync_weights(policy), 0)
    rollout = engine.generate(PromptBatch(batch.prompts[:1]), SAMPLING, seed=0)
    assert engine.pool is not None
    other = Path(str(engine.weights_folder)) / "other"
    with torch.no_grad():
        changed = copy.deepcopy(policy)
        for parameter in changed.parameters():
            parameter.mul_(1.05)
    changed.save_pretrained(other)  # type: ignore[operator]
    engine.pool.servers[1].load(other, str(engine.pool.tag))
    with pytest.raises(ServerRefused, match=r"disagree by .*: they do not serve the same weights"):
        engine.score(rollout)
    engine.pool.servers[1].load(other, "somebody-elses")  # an answer under another tag is not used: weights come again
    assert engine.generate(batch, SAMPLING, seed=0).completions
    engine.score(rollout)
    for file in other.iterdir():
        file.unlink()
    other.rmdir()


def test_strangers_and_malformed_requests_change_nothing(
    rollout_servers: tuple[Server, Server],
    engine: VLLMServerEngine,
    backbone: Qwen25VL,
    policy: nn.Module,
    batch: PromptBatch,
    tmp_path: Path,
) -> None:
    server = rollout_servers[0]
    engine.sync(backbone.sync_weights(policy), 0)
    rollout = engine.generate(batch, SAMPLING, seed=0)
    before = engine.score(rollout)
    outside = tmp_path / "outside"
    with torch.no_grad():
        changed = copy.deepcopy(policy)
        for parameter in changed.parameters():
            parameter.zero_()
    changed.save_pretrained(outside)  # type: ignore[operator]
    inside = next(Path(str(engine.weights_folder)).iterdir())
    good = engine._body(batch.prompts[0], (), {"max_tokens": 2})
    reload = {"method": "take_weights", "kwargs": {"weights_path": str(inside)}}
    for key in (None, "wrong" * 5):
        for path, body in (
            ("/inference/v1/generate", good),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
            ("/collective_rpc", reload),
            ("/update_weight_version", {"new_version": "x"}),
            ("/reset_prefix_cache", {}),
            ("/sleep", {}),
        ):
            assert server.ask("POST", path, key, json=body).status_code == 401, path
        assert server.ask("GET", "/health", key).status_code == 401
    bad: list[tuple[str, Any, int]] = [
        ("/inference/v1/generate", {**good, "token_ids": [10**6], "content_parts": []}, 400),
        ("/inference/v1/generate", {**good, "sampling_params": {"max_tokens": 2, "n": 10**6}}, 400),
        ("/inference/v1/generate", {**good, "sampling_params": {"max_tokens": 2, "logit_bias": {"999999": 1.0}}}, 400),
        (
            "/inference/v1/generate",
            {**good, "content_parts": [{"type": "image_url", "url": "file:///etc/x"}]},
            400,
        ),
        (
            "/inference/v1/generate",
            {**good, "content_parts": [{"type": "image_url", "url": "data:image/png;base64,AAAA"}]},
            400,
        ),
        ("/inference/v1/generate", {**good, "content_parts": good["content_parts"] * 3}, 400),
        ("/v1/chat/completions", {"messages": []}, 400),
        ("/collective_rpc", {"method": "take_weights", "kwargs": {"weights_path": str(outside)}}, 400),
        ("/collective_rpc", {"method": "reset_weights", "kwargs": {"weights_path": str(inside)}}, 400),
        ("/collective_rpc", {"method": "take_weights", "kwargs": {"weights_path": str(inside / "missing")}}, 400),
        ("/update_weights", {"update_info": {"names": [], "dtype_names": [], "shapes": []}}, 404),
        ("/pause", {}, 404),
        ("/inference/v1/generate", {**good, "model": "x" * 3 * 2**20}, 413),
    ]
    for path, body, status in bad:
        reply = server.ask("POST", path, json=body)
        assert reply.status_code == status, (path, str(body)[:200], reply.text[:300])
    assert server.ask("POST", "/collective_rpc", content=b"{").status_code == 415
    assert [s.logprobs for s in engine.score(rollout)] == [s.logprobs for s in before]
    assert server.ask("GET", "/weight_info").json() == {"weight_version": engine.pool.tag if engine.pool else None}
    assert server.ask("POST", "/inference/v1/generate", json=good).status_code == 200


def test_a_wrong_key_and_an_absent_server_end_with_one_line(
    rollout_servers: tuple[Server, Server], backbone: Qwen25VL, policy: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(rollout_servers[0].weights_folder)
    monkeypatch.setenv(KEY_VARIABLE, "not-the-key-at-all")
    made = VLLMServerEngine([rollout_servers[0].url], weights_folder=folder)
    with pytest.raises(ServerRefused, match="HTTP 401: the key is missing or wrong") as caught:
        made.setup(backbone, policy)
    assert "not-the-key-at-all" not in str(caught.value)
    nobody = VLLMServerEngine([f"http://127.0.0.1:{free_port()}"], weights_folder=folder, seconds_to_start=0.1)
    with pytest.raises(ServerUnavailable, match=r"waited 0\.1 s; start it with: python -m pixelthink\.serving"):
        nobody.setup(backbone, policy)


def test_a_server_that_comes_back_gets_the_weights_again(
    rollout_servers: tuple[Server, Server],
    engine: VLLMServerEngine,
    backbone: Qwen25VL,
    policy: nn.Module,
    batch: PromptBatch,
) -> None:
    """The other one takes over; the one that was restarted serves the checkpoint's weights, which is noticed."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.02)
    engine.sync(backbone.sync_weights(policy), 5)
    before = engine.generate(batch, SAMPLING, seed=1)
    rollout_servers[1].kill()
    without = engine.generate(batch, SAMPLING, seed=1)
    assert [c.token_ids for c in without.completions] == [c.token_ids for c in before.completions]
    rollout_servers[1].start()
    rollout_servers[1].wait()
    after = engine.generate(batch, SAMPLING, seed=1)
    assert worst_difference(backbone, policy, after) < 1e-5
    assert [c.token_ids for c in after.completions] == [c.token_ids for c in before.completions]
    assert rollout_servers[1].ask("GET", "/weight_info").json()["weight_version"] == engine.pool.tag  # type: ignore[union-attr]


def fit(folder: Path, server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Six steps of GRPO with rollouts by a server, a checkpoint after each."""
    checkpoint = (
        "{class_path: ModelCheckpoint, init_args: "
        f"{{dirpath: {folder}/checkpoints, save_last: true, every_n_train_steps: 1}}}}"
    )
    recorder = f"{{class_path: StepRecorder, init_args: {{path: {folder}/steps.jsonl}}}}"
    killer = [a.removeprefix("kill=") for a in arguments if a.startswith("kill=")]
    killers = [f"{{class_path: ServerKiller, init_args: {{process: {server.process.pid}, step: {k}}}}}" for k in killer]
    command = [
        *(sys.executable, "-m", "pixelthink", "fit", "--config", str(ROOT / "configs/tiny.yaml")),
        *("--config", str(ROOT / "configs/rollout/vllm_server.yaml")),
        f"--model.rollout.servers=[{server.url}]",
        f"--model.rollout.weights_folder={server.weights_folder}",
        *("--model.rollout.retry.max_retries=2", "--model.rollout.retry.backoff=0.2"),
        *("--data.batch_size=4", "--data.train.size=12", "--data.val=null", "--trainer.max_epochs=2"),
        *("--trainer.val_check_interval=null", "--trainer.logger=false", "--trainer.enable_progress_bar=false"),
        f"--trainer.callbacks=[{', '.join([checkpoint, recorder, *killers])}]",
        *(a for a in arguments if not a.startswith("kill=")),
    ]
    environment = {**os.environ, "PIXELTHINK_PLUGINS": "tests.recorder", KEY_VARIABLE: KEY}
    folder.mkdir(exist_ok=True)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def steps(folder: Path) -> dict[int, dict[str, Any]]:
    """What was recorded of each step; of one that was done twice, by the broken and by the resumed run, the same."""
    found: dict[int, dict[str, Any]] = {}
    for line in (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert found.setdefault(row["step"], row) == row
    return found


AHEAD = ("--model.sample_ahead=true", "--model.grpo.rollout_correction=token_truncate")


@pytest.mark.parametrize("options", [(), AHEAD], ids=["in turn", "ahead"])
def test_a_server_killed_in_the_middle_of_a_rollout(
    rollout_servers: tuple[Server, Server], tmp_path: Path, options: tuple[str, ...]
) -> None:
    """The run goes on identically where it ended, on the server started again, or on another."""
    steady, mortal = rollout_servers
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    done = fit(straight, steady, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    killed = fit(broken, mortal, *options, "kill=3")
    assert killed.returncode == 2
    line = killed.stderr.strip().splitlines()[-1]
    assert line.startswith(f"pixelthink: error: rollout server {mortal.url}: ")
    assert "(tried 3 times)" in line
    assert KEY not in killed.stdout + killed.stderr
    if not options:
        mortal.start()
        mortal.wait()
    resumed = fit(broken, steady if options else mortal, *options, "--ckpt_path=last")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert list(steps(straight)) == [1, 2, 3, 4, 5, 6]
    assert steps(broken) == steps(straight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"servers": []}, "at least one address"),
        ({"servers": ["http://a:1", "http://a:1"]}, "none twice"),
        ({"weights_folder": None}, "set one of them"),
        ({"nccl_address": "10.0.0.1"}, "set one of them"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VLLMServerEngine(**{"servers": ["http://127.0.0.1:1"], "weights_folder": "x", **options})
    with pytest.raises(ValueError, match="is no address"):
        RolloutServer("127.0.0.1:8000", None, 1.0)


def test_images_go_over_without_loss(batch: PromptBatch) -> None:
    import base64
    import io

    from PIL import Image

    image = batch.prompts[0].image
    sent = Image.open(io.BytesIO(base64.b64decode(data_uri(image).partition(",")[2])))
    assert (sent.mode, sent.tobytes()) == (image.mode, image.tobytes())


@pytest.mark.parametrize("engine_class", ["VLLMServerEngine", "tests.sabotage._OtherWeights"])
def test_difficulties_are_not_estimated_with_other_weights(
    engine_class: str,
    rollout_servers: tuple[Server, Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    run, output = tmp_path / "run.json", tmp_path / "difficulty.json"
    policy = {"path": str(ROOT / "assets/tiny_policy"), "dtype": "float32", "local_files_only": True}
    servers = {"servers": [s.url for s in rollout_servers], "weights_folder": str(rollout_servers[0].weights_folder)}
    model = {
        "policy": {"class_path": "Qwen25VL", "init_args": policy},
        "rollout": {"class_path": engine_class, "init_args": servers},
        "sampling": {"group_size": 2, "max_new_tokens": 150},
    }
    data = {
        "train": {"class_path": "ShapeScenes", "init_args": {"size": 8, "levels": ["easy"]}},
        "prompt": "ShortPrompt",
        "image_size": [112, 112],
    }
    run.write_text(json.dumps({"model": {"class_path": "GRPOModule", "init_args": model}, "data": data}), "utf-8")
    arguments = [f"--run={run}", f"--output={output}", "--rollouts=2", "--batch_size=8"]
    status, printed = estimate_difficulty.main(arguments), capsys.readouterr()
    if engine_class == "VLLMServerEngine":
        assert status == 0
        assert float(printed.out.split("mean success ")[1].split(",")[0]) > 0.7
    else:
        assert status == 2
        assert "the rollout engine does not sample from the policy's weights of step 0" in printed.err
        assert not output.exists()
