"""{Qwen2.5-VL, Qwen3-VL} × {full, LoRA, QLoRA} × {transformers, vLLM} × {copy, adapter off}: three steps and a test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageTextToText

from pixelthink.cli.main import PixelThinkCLI, main
from pixelthink.cli.registry import load_components
from pixelthink.policies.adapters import base_weights, is_adapter_weight
from pixelthink.policies.tiny import FreshTinyQwen3VL, FreshTinyQwen25VL
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.rollouts.parity import policy_logprobs
from pixelthink.types import RolloutBatch
from tests.shared_engine import SharedVLLM
from tests.support import tiny_run
from tests.tiny_models import TINY_SIZES, save_tiny

pytestmark = pytest.mark.slow
Family = tuple[str, Path, list[str]]

ADAPTER = "--model.policy.adapter={rank: 4, alpha: 8}"
FAMILIES: dict[str, tuple[str, type[FreshTinyQwen25VL], list[str]]] = {
    "qwen2.5": ("Qwen25VL", FreshTinyQwen25VL, []),
    "qwen3": ("Qwen3VL", FreshTinyQwen3VL, ["--data.image_size=[128, 128]", "--data.coordinates=per_mille"]),
}
TRAINED = {
    "full": [],
    "lora": [ADAPTER],
    "qlora": [ADAPTER, "--model.policy.quantization=nf4"],
}
ENGINES = {"transformers": "HFEngine", "vllm": "tests.shared_engine.SharedVLLM"}
REFERENCES = {"copy": "FrozenCopy", "adapter_off": "AdapterOff"}
CELLS = [
    (trained, reference)
    for trained in TRAINED
    for reference in REFERENCES
    if (trained, reference) != ("full", "adapter_off")
]


@pytest.fixture(scope="module", autouse=True)
def _engines() -> Iterator[None]:
    """Ends the engines that the runs have shared."""
    yield
    if not SharedVLLM.running:
        return
    from vllm.distributed import cleanup_dist_env_and_memory

    while SharedVLLM.running:
        _, engine = SharedVLLM.running.popitem()
        engine.llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A family's class, a tiny policy of it, and what its images and coordinates ask of the data."""
    backbone, fresh, options = FAMILIES[request.param]
    heads_of_32 = fresh(**TINY_SIZES, heads=2)  # vLLM's CPU attention has no smaller heads
    return backbone, save_tiny(heads_of_32, tmp_path_factory.mktemp("policy")), options


def run_options(folder: Path, family: Family, engine: str, *more: str) -> list[str]:
    """Options of a run of three steps, whose reward gives every group something to learn."""
    backbone, path, data = family
    name, value = "--model.policy", {"class_path": backbone, "init_args": {"path": str(path), "dtype": "float32"}}
    return [
        *tiny_run(folder, path),
        f"{name}={json.dumps(value)}",
        *data,
        f"--model.rollout={ENGINES[engine]}",
        "--model.reward=tests.outside_parts.OutsideReward",
        "--model.optimizer.lr=0.01",
        "--model.sampling.max_new_tokens=6",
        "--model.evaluation.sampling.max_new_tokens=6",
        "--data.train.size=6",
        "--data.test.size=2",
        "--trainer.max_steps=3",
        "--trainer.limit_val_batches=0",
        *more,
    ]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("trained", "reference"), CELLS, ids=lambda value: value)
def test_three_steps_and_a_test(trained: str, reference: str, engine: str, family: Any, tmp_path: Path) -> None:
    options = run_options(tmp_path, family, engine, *TRAINED[trained], f"--model.reference={REFERENCES[reference]}")
    main(["fit", *options])
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert all(is_adapter_weight(name) for name in checkpoint["state_dict"]) == (trained != "full")
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    kl = [event.value for event in events.Scalars("loss/kl")]
    assert kl[0] == 0.0
    assert len(kl) == 3
    assert kl[2] > 0
    assert all(event.value > 0 for event in events.Scalars("loss/grad_norm"))

    writer = f"[{{class_path: ResultsWriter, init_args: {{path: {tmp_path}/out}}}}]"
    main(["test", *options, f"--trainer.callbacks={writer}", f"--ckpt_path={tmp_path}/checkpoints/last.ckpt"])
    assert 0 <= json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))["giou"] <= 1


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
def test_after_three_steps_the_base_is_untouched_and_vllm_agrees(
    merge: bool, quantization: str, family: Any, tmp_path: Path
) -> None:
    load_components()
    arguments = [ADAPTER, f"--model.policy.quantization={quantization}", f"--model.rollout.merge_adapter={merge}"]
    options = run_options(tmp_path, family, "vllm", *arguments, "--model.reference=AdapterOff")
    cli = PixelThinkCLI(args=["fit", *options, "--trainer.callbacks=[RolloutWeightSync]"])
    module, engine = cli.model, cli.model.answerer._rollout
    assert isinstance(engine, SharedVLLM)
    assert (engine.adapter is None) == merge
    start = dict(module.answerer.backbone.load_model().named_parameters())
    own = dict(module.policy.named_parameters())
    assert own.keys() == start.keys()
    for name, parameter in own.items():
        if is_adapter_weight(name):
            assert parameter.any()
        else:
            assert torch.equal(parameter, start[name]), name
    torch.manual_seed(0)  # the run's seed: what the adapter was at the start
    begun = dict(module.answerer.backbone.load_model().named_parameters())
    assert not [name for name in own if is_adapter_weight(name) and torch.equal(own[name], begun[name])]
    if quantization == "none":
        disk = dict(AutoModelForImageTextToText.from_pretrained(family[1]).named_parameters())
        assert all(torch.equal(weight, disk[name]) for name, weight in base_weights(module.policy, merged=False))

    batch = next(iter(cli.datamodule.train_dataloader()))
    synced = module.answerer.engine
    handover = synced.hand_over(batch, evaluating=True)
    assert handover.sync.bytes < 100_000 or merge  # the adapter alone went over
    rollout = synced.generate(batch, SamplingConfig(2, 6), seed=5)
    for index, (completion, score) in enumerate(zip(rollout.completions, engine.score(rollout), strict=True)):
        prompt = rollout.prompt_of(index)
        alone = RolloutBatch((prompt,), (completion,), 1)
        expected = policy_logprobs(
            module.answerer.backbone, module.policy, module.answerer.backbone.encode([prompt])[0], alone
        )
        torch.testing.assert_close(torch.tensor(score.logprobs), torch.tensor(expected), rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.tensor(completion.logprobs), torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.reference=AdapterOff"], "model.reference: AdapterOff needs a policy with an adapter;"),
        (
            ["--model.policy.quantization=nf4"],
            "no weight would be trained; a quantised policy needs model.policy.adapter",
        ),
        ([ADAPTER, "--model.policy.quantization=int8", "--model.rollout=VLLMEngine"], "int8 also rounds activations"),
        (["--model.policy.adapter={rank: 4, target_modules: [qkv]}"], "the language model has no linear layer 'qkv'"),
        (["--trainer.callbacks=[{class_path: HFExport, init_args: {path: x, what: adapter}}]"], "the policy has none"),
    ],
)
def test_what_cannot_be_done_is_refused(options, message, tiny_policy_path, tmp_path, capsys) -> None:
    family = ("Qwen25VL", tiny_policy_path, [])
    with pytest.raises(SystemExit):
        main(["fit", *run_options(tmp_path, family, "transformers", *options)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pixelthink: error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "checkpoints").exists()
