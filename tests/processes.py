"""Training runs for tests of several processes, and the program that each of these processes runs.

`launch` starts processes that make a list of runs one after the other, since starting one takes seconds.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pixelthink.callbacks.hf_export import HFExport
from pixelthink.data.datamodule import PromptData
from pixelthink.data.prompts import ShortPrompt
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.evaluation.config import EvaluationConfig
from pixelthink.evaluation.interface import SegmentationModule
from pixelthink.files.checkpoints import AtomicCheckpointIO
from pixelthink.grpo.loss import GRPOConfig, LossInputs
from pixelthink.parallel.sharding import full_state
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.rewards.base import Reward
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.training.grpo_module import GRPOModule
from pixelthink.training.optim import TransformersSchedule
from pixelthink.training.scorer import Scorer
from pixelthink.training.sft_module import Recipe, SFTModule
from pixelthink.types import Score, ScoringCase
from tests.support import ROOT

TRAINED = ("loss/loss", "loss/grad_norm", "loss/kl", "loss/entropy", "train/reward", "train/response_tokens", "loss")


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        name: Of its result.
        policy: Folder of the policy.
        strategy: Lightning's name, or an object.
        steps: Number of training batches.
        grpo: Constants of the algorithm.
        kind: "grpo", "sft", or "poisoned": GRPO whose last process has no finite loss in its second step.
        reward_kinds: Number of different rewards; few make flat groups.
        resume: Checkpoint to go on from.
        save: Checkpoint to write after the last batch, in the middle of an epoch.
        max_skipped_steps: As the module's.
        validate: Validate at the end, on 5 samples.
        export: Folder to export the policy to at the end.
        lr: Learning rate.
    """

    name: str
    policy: str
    strategy: Any = "auto"
    steps: int = 5
    grpo: GRPOConfig = field(default_factory=lambda: GRPOConfig(kl_coef=0.05, micro_batch_tokens=200))
    kind: str = "grpo"
    reward_kinds: int = 5
    resume: str | None = None
    save: str | None = None
    max_skipped_steps: int = 10
    validate: bool = False
    export: str | None = None
    lr: float = 1e-3


@dataclass
class Result:
    """What a run did, as its first process knows it.

    Attributes:
        steps: Metrics of each training batch.
        weights: Of the policy in the end.
        metrics: Of the validation.
        skipped: Steps left out.
        synced: What `sync_weights` yields in the end.
        dtypes: Precisions of the policy's own parameters.
    """

    steps: list[dict[str, float]]
    weights: dict[str, Tensor]
    metrics: dict[str, float]
    skipped: int
    synced: dict[str, Tensor]
    dtypes: set[torch.dtype]


class TokenReward(Reward):
    """A reward that is a function of the text alone, and differs within groups.

    Args:
        kinds: Number of different rewards.
    """

    def __init__(self, kinds: int) -> None:
        self.kinds = kinds

    def score(self, case: ScoringCase) -> Score:
        return Score(float(sum(case.text.encode()) % self.kinds), {})


class PoisonedScorer(Scorer):
    """Computes no finite loss in the last process's second batch."""

    def __init__(self, module: GRPOModule) -> None:
        own = module.scorer
        super().__init__(own.backbone, own.policy, own.reference, own.config)
        self.trainer = module.trainer

    def loss_inputs(self, piece: Any) -> LossInputs:
        inputs = super().loss_inputs(piece)
        last = self.trainer.global_rank == self.trainer.world_size - 1
        if last and self.trainer.fit_loop.batch_idx == 1:
            return replace(inputs, logprobs=inputs.logprobs * torch.inf)
        return inputs


class PoisonedModule(GRPOModule):
    """Its last process computes no finite loss in the second batch."""

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.scorer = PoisonedScorer(self)


class Recorder(Callback):
    """Keeps the metrics of each step, writes the checkpoint.

    Args:
        run: What is made.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *rest: Any, **named: Any) -> None:
        self.steps.append({name: float(v) for name, v in trainer.callback_metrics.items() if name in TRAINED})
        if self.run.save is not None and len(self.steps) == self.run.steps:
            trainer.save_checkpoint(self.run.save)
            trainer.should_stop = True


def module_of(run: Run) -> SegmentationModule:
    """The module of a run, its schedule included."""
    backbone = Qwen25VL(run.policy, dtype="float32", local_files_only=True)
    options: dict[str, Any] = {
        "evaluation": EvaluationConfig(sampling=SamplingConfig(group_size=1, temperature=0.0, max_new_tokens=8)),
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=run.lr, weight_decay=0.01),
        "lr_scheduler": lambda optimizer: TransformersSchedule(optimizer, total_steps=20, warmup_steps=2),
        "max_skipped_steps": run.max_skipped_steps,
    }
    if run.kind == "sft":
        return SFTModule(backbone, [Recipe("brief")], micro_batch_size=1, **options)
    made = PoisonedModule if run.kind == "poisoned" else GRPOModule
    sampling = SamplingConfig(group_size=4, max_new_tokens=10)
    return made(backbone, TokenReward(run.reward_kinds), sampling=sampling, grpo=run.grpo, **options)


def train(run: Run, devices: int = 1) -> Result:
    """Makes a run in this process, one of `devices`."""
    L.seed_everything(0, verbose=False)
    module, recorder = module_of(run), Recorder(run)
    data = PromptData(
        train=ShapeScenes(size=40, seed=3),
        val=ShapeScenes(split="val", size=5) if run.validate else None,
        prompt=ShortPrompt(),
        image_size=(112, 112),
        batch_size=4,
        eval_batch_size=4,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=run.strategy,
        callbacks=[recorder] if run.export is None else [recorder, HFExport(run.export)],
        plugins=[AtomicCheckpointIO()],
        max_epochs=1,
        limit_train_batches=run.steps if run.save is None else run.steps + 2,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data, ckpt_path=run.resume, weights_only=False)
    if dist.is_initialized():
        dist.barrier()  # another run may read what this one wrote
    assert module.policy is not None
    metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
    weights = {name: weight.clone() for name, weight in full_state(module.policy).items()}
    synced = {name: weight.clone() for name, weight in module.answerer.backbone.sync_weights(module.policy)}
    dtypes = {parameter.dtype for parameter in module.policy.parameters()}
    return Result(recorder.steps, weights, metrics, module.learner.skipped_steps, synced, dtypes)


def launch(runs: Sequence[Run], processes: int, folder: Path, seconds: float = 300) -> list[dict[str, Result | str]]:
    """Makes runs in several processes; for each process the results by name, an error's text in place of one."""
    (folder / "runs.pickle").write_bytes(pickle.dumps(list(runs)))
    program = f"from tests.processes import main; main({str(folder)!r}, {processes})"
    command = [sys.executable, "-c", program]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    environment = {**os.environ, **shared, "NODE_RANK": "0", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            command, cwd=ROOT, env={**environment, "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(processes)
    ]
    try:
        errors = [process.communicate(timeout=seconds)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), "\n".join(error[-3000:] for error in errors)
    return [pickle.loads((folder / f"results-{rank}.pickle").read_bytes()) for rank in range(processes)]


def free_port() -> int:
    """A port of the loopback that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(folder_name: str, devices: int) -> None:
    """Makes the runs of a folder in this process."""
    folder = Path(folder_name)
    torch.set_num_threads(1)
    results: dict[str, Result | str] = {}
    for run in pickle.loads((folder / "runs.pickle").read_bytes()):
        try:
            results[run.name] = train(run, devices)
        except (ValueError, RuntimeError) as error:
            results[run.name] = str(error)
    (folder / f"results-{os.environ['LOCAL_RANK']}.pickle").write_bytes(pickle.dumps(results))
