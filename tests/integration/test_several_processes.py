"""Two and four processes, with copies of the model (DDP) or shards of it (FSDP2), do what one process does.

All runs of two processes are made by one pair of processes, all of four by one quartet: see `tests.processes`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from pixelthink.grpo.loss import GRPOConfig
from pixelthink.parallel.sharding import Sharding
from pixelthink.parallel.strategy import FSDP2
from pixelthink.policies.qwen_vl import Qwen25VL
from tests.processes import Result, Run, launch, train

pytestmark = pytest.mark.slow

PLAIN = GRPOConfig(kl_coef=0.05, micro_batch_tokens=200)
VARIANTS = {
    "plain": {"grpo": PLAIN, "validate": True},
    "two updates": {"grpo": GRPOConfig(kl_coef=0.05, minibatches=2, micro_batch_size=3), "steps": 3},
    "flat groups": {"grpo": GRPOConfig(kl_coef=0.0, entropy_coef=0.0, micro_batch_size=1), "reward_kinds": 2},
    "cold start": {"kind": "sft", "steps": 3},
}


def run(name: str, policy: Path, **options: Any) -> Run:
    return Run(name, str(policy), **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def one(tiny_policy_path: Path, folder: Path) -> dict[str, Result]:
    """Every variant in one process, and a checkpoint of it after three steps."""
    train(run("start", tiny_policy_path, steps=3, save=f"{folder}/one.ckpt"))
    return {name: train(run(name, tiny_policy_path, **options)) for name, options in VARIANTS.items()}


@pytest.fixture(scope="module")
def two(tiny_policy_path: Path, folder: Path, one: dict[str, Result]) -> list[dict[str, Any]]:
    """Every variant under both strategies, and what else two processes are asked for, from both of them."""
    runs = [
        run(f"{strategy} {name}", tiny_policy_path, strategy="ddp" if strategy == "ddp" else FSDP2(), **options)
        for strategy in ("ddp", "fsdp2")
        for name, options in VARIANTS.items()
    ]
    half = FSDP2(Sharding(param_dtype="bfloat16", reshard_after_forward=False))
    sharded = FSDP2(save_distributed_checkpoint=True)
    lightning = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    runs += [
        run("lightning's own", tiny_policy_path, strategy=lightning, steps=2),
        run("half precision", tiny_policy_path, strategy=half, steps=3, lr=1e-6),
        run("export", tiny_policy_path, strategy=FSDP2(), steps=1, export=f"{folder}/exported"),
        run("save", tiny_policy_path, strategy=FSDP2(), steps=3, save=f"{folder}/two.ckpt"),
        run("save shards", tiny_policy_path, strategy=sharded, steps=3, save=f"{folder}/shards.ckpt"),
        run("save ddp", tiny_policy_path, strategy="ddp", steps=3, save=f"{folder}/ddp.ckpt"),
        run("ddp from one", tiny_policy_path, strategy="ddp", resume=f"{folder}/one.ckpt"),
        run("fsdp2 from one", tiny_policy_path, strategy=FSDP2(), resume=f"{folder}/one.ckpt"),
        run("fsdp2 from shards", tiny_policy_path, strategy=FSDP2(), resume=f"{folder}/shards.ckpt"),
        run("poisoned ddp", tiny_policy_path, strategy="ddp", kind="poisoned", steps=3),
        run("poisoned fsdp2", tiny_policy_path, strategy=FSDP2(), kind="poisoned", steps=3),
        run("diverged", tiny_policy_path, strategy="ddp", kind="poisoned", steps=3, max_skipped_steps=0),
        run("tensor parallel", tiny_policy_path, strategy=ModelParallelStrategy(), steps=1),
    ]
    return launch(runs, 2, folder)


@pytest.fixture(scope="module")
def four(tiny_policy_path: Path, folder: Path, two: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Four processes: from the start, and from what two wrote."""
    sharded = FSDP2(save_distributed_checkpoint=True)
    (folder / "four").mkdir()
    runs = [
        run("ddp", tiny_policy_path, strategy="ddp", validate=True),
        run("fsdp2", tiny_policy_path, strategy=FSDP2(), validate=True),
        run("from two", tiny_policy_path, strategy=FSDP2(), resume=f"{folder}/two.ckpt"),
        run("from two's shards", tiny_policy_path, strategy=sharded, resume=f"{folder}/shards.ckpt"),
    ]
    return launch(runs, 4, folder / "four")


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name].float() - expected[name].float()).abs().max()) for name in expected)


def assert_same(found: Result | str, expected: Result, last: int = 5) -> None:
    """Equal losses of the last steps and equal weights in the end, to 1e-5."""
    assert isinstance(found, Result), found
    assert len(found.steps) == min(last, len(expected.steps))
    for step, wanted in zip(found.steps, expected.steps[-last:], strict=True):
        assert step == pytest.approx(wanted, abs=1e-5)
    assert difference(found.weights, expected.weights) < 1e-5


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_take_the_trajectory_of_one(
    one: dict[str, Result], two: list[dict[str, Any]], strategy: str, variant: str
) -> None:
    assert_same(two[0][f"{strategy} {variant}"], one[variant])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_four_processes_take_the_trajectory_of_one(
    one: dict[str, Result], four: list[dict[str, Any]], strategy: str
) -> None:
    assert_same(four[0][strategy], one["plain"])


def test_the_runs_learn_something(one: dict[str, Result], tiny_policy_path: Path) -> None:
    start = Qwen25VL(str(tiny_policy_path), dtype="float32").load_model().state_dict()
    for result in one.values():
        assert difference(result.weights, start) > 1e-3


def test_uneven_evaluation_gives_the_metrics_of_one(
    one: dict[str, Result], two: list[dict[str, Any]], four: list[dict[str, Any]]
) -> None:
    timed = ("_ms", "per_second")
    expected = {name: value for name, value in one["plain"].metrics.items() if not name.endswith(timed)}
    assert {"val/giou", "val/ciou", "val/parse_rate", "val/reasoning_tokens"} <= expected.keys()
    everywhere = [results[f"{strategy} plain"] for results in two for strategy in ("ddp", "fsdp2")]
    everywhere += [results[strategy] for results in four for strategy in ("ddp", "fsdp2")]
    for found in everywhere:
        assert {name: found.metrics[name] for name in expected} == expected


def test_lightnings_own_strategy_does_too(one: dict[str, Result], two: list[dict[str, Any]]) -> None:
    for step, expected in zip(two[0]["lightning's own"].steps, one["plain"].steps[:2], strict=True):
        assert step == pytest.approx(expected, abs=1e-5)


def test_shards_stay_float32_where_bfloat16_computes(two: list[dict[str, Any]], one: dict[str, Result]) -> None:
    half, exact = two[0]["half precision"], one["plain"]
    assert half.dtypes == {torch.float32}
    assert half.steps[0]["loss/entropy"] == pytest.approx(exact.steps[0]["loss/entropy"], rel=2e-2)
    assert half.steps[0]["loss/grad_norm"] == pytest.approx(exact.steps[0]["loss/grad_norm"], rel=0.1)
    unchanged = two[0]["poisoned fsdp2"].weights
    norms = [name for name in half.weights if name.endswith("norm.weight")]
    assert norms
    for name in norms:  # weights of 1, which a step of 1e-6 would not move in bfloat16
        moved = (half.weights[name] - 1).abs()
        assert 0 < float(moved.max()) < 1e-5
        assert unchanged[name].dtype == torch.float32


def test_every_process_syncs_the_same_whole_weights(two: list[dict[str, Any]]) -> None:
    first, second = (results["fsdp2 plain"] for results in two)
    assert difference(first.synced, second.synced) == 0
    held = {name: weight for name, weight in first.weights.items() if name in first.synced}
    assert difference(first.synced, held) == 0


def test_a_sharded_policy_is_exported_whole(two: list[dict[str, Any]], folder: Path) -> None:
    from transformers import AutoModelForImageTextToText

    found = AutoModelForImageTextToText.from_pretrained(folder / "exported", dtype=torch.float32)
    assert type(found).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert difference(found.state_dict(), two[0]["export"].weights) == 0


@pytest.mark.parametrize("name", ["ddp from one", "fsdp2 from one", "fsdp2 from shards"])
def test_two_processes_resume_what_one_or_two_wrote(
    one: dict[str, Result], two: list[dict[str, Any]], name: str
) -> None:
    assert_same(two[0][name], one["plain"], last=2)


@pytest.mark.parametrize("name", ["from two", "from two's shards"])
def test_four_processes_resume_what_two_wrote(one: dict[str, Result], four: list[dict[str, Any]], name: str) -> None:
    assert_same(four[0][name], one["plain"], last=2)


@pytest.mark.parametrize("checkpoint", ["two.ckpt", "ddp.ckpt"])
def test_one_process_resumes_what_two_wrote(
    one: dict[str, Result], two: list[dict[str, Any]], folder: Path, tiny_policy_path: Path, checkpoint: str
) -> None:
    assert_same(train(run("resumed", tiny_policy_path, resume=str(folder / checkpoint))), one["plain"], last=2)


def test_checkpoints_leave_nothing_beside_them(two: list[dict[str, Any]], folder: Path) -> None:
    assert (folder / "shards.ckpt").is_dir()
    assert {path.name for path in folder.iterdir() if "ckpt" in path.name} == {
        *("one.ckpt", "two.ckpt", "ddp.ckpt", "shards.ckpt")
    }


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_step_that_is_not_finite_on_one_process_is_left_out_on_all(two: list[dict[str, Any]], strategy: str) -> None:
    found = [results[f"poisoned {strategy}"] for results in two]
    assert [result.skipped for result in found] == [1, 1]
    assert all(torch.isfinite(weight).all() for weight in found[0].weights.values())
    norms = [step["loss/grad_norm"] for step in found[0].steps]
    assert torch.tensor(norms).isfinite().tolist() == [True, False, True]


def test_too_many_such_steps_end_the_run_on_all(two: list[dict[str, Any]]) -> None:
    for results in two:
        assert "training stopped at step 1: 1 steps without a finite loss or gradient" in results["diverged"]


def test_tensor_parallelism_is_refused(two: list[dict[str, Any]]) -> None:
    for results in two:
        assert "ModelParallelStrategy needs tensor_parallel_size 1" in results["tensor parallel"]
