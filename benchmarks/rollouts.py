"""Rollouts by vLLM against those by transformers; what a weight sync costs, and its proof.

    python benchmarks/rollouts.py

Prints, from one run on the tiny policy: tokens per second of transformers' `generate`, of HFEngine and of VLLMEngine
for several numbers of completions of equal length, each asked with prompts that it has not seen; seconds of a sync
against copying the same bytes; and the proof's share of a training step of configs/tiny_vllm.yaml. Needs vLLM
(`make vllm`). Compare within one run: machines differ, and a 1.4-million-parameter policy is all overhead.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.plain_generate import PlainGenerate
from pixelthink.data.collate import Collate
from pixelthink.data.prompts import ShortPrompt
from pixelthink.data.sources.shape_scenes import ShapeScenes
from pixelthink.policies.base import PolicyBackbone
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.rollouts.base import RolloutEngine, SamplingConfig
from pixelthink.rollouts.hf import HFEngine
from pixelthink.rollouts.vllm import VLLMEngine
from pixelthink.types import PromptBatch

GROUP = 8
WARM_UP_STEPS = 2


class NeverStopping(Qwen25VL):
    """A policy without stop tokens, so that all completions have the same length."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, default=Path("assets/tiny_policy"))
    parser.add_argument("--completions", type=int, nargs="+", default=[8, 32, 64], help="multiples of 8")
    parser.add_argument("--tokens", type=int, default=100, help="tokens of each completion")
    parser.add_argument("--repeats", type=int, default=3, help="the median of these counts")
    parser.add_argument("--steps", type=int, default=8, help="training steps behind the proof's share")
    options = parser.parse_args()
    if any(count < GROUP or count % GROUP for count in options.completions) or options.steps <= WARM_UP_STEPS:
        parser.error(f"--completions must be multiples of {GROUP}, --steps more than {WARM_UP_STEPS}")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    backbone = NeverStopping(path=str(options.policy), dtype="float32", local_files_only=True)
    backbone.setup()
    model = backbone.load_model()
    ours = VLLMEngine(max_model_len=1024, enforce_eager=True)
    engines: dict[str, RolloutEngine] = {"generate": PlainGenerate(), "HFEngine": HFEngine(), "VLLMEngine": ours}
    for engine in engines.values():
        engine.setup(backbone, model)
    print(f"{torch.get_num_threads()} thread(s), {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters")
    ours.sync(backbone.sync_weights(model), 0)
    compare_speed(engines, options.completions, options.tokens, options.repeats)
    compare_sync(ours, backbone, model, options.repeats)
    ours.close()
    measure_proof(options.policy, options.steps)


def compare_speed(engines: dict[str, RolloutEngine], completions: list[int], tokens: int, repeats: int) -> None:
    """Prints a row per number of completions."""
    sampling = SamplingConfig(GROUP, tokens)
    unseen = iter(ShapeScenes(split="train", size=(repeats + 1) * len(engines) * sum(completions) // GROUP))
    print(f"tokens per second at {tokens} tokens a completion, median of {repeats}:")
    for count in completions:
        found: dict[str, list[float]] = {name: [] for name in engines}
        for repeat in range(repeats + 1):  # taken in turn, so that a slow minute hits all of them
            for name, engine in engines.items():
                batch = Collate(ShortPrompt(), (112, 112), "pixels")([next(unseen) for _ in range(count // GROUP)])
                found[name].append(seconds_of(engine, batch, sampling, repeat))
        seconds = {name: statistics.median(values[1:]) for name, values in found.items()}
        rates = ", ".join(f"{name} {count * tokens / value:.0f}" for name, value in seconds.items())
        ratios = [seconds[name] / seconds["VLLMEngine"] for name in ("generate", "HFEngine")]
        print(f"  {count:3} completions: {rates}; vLLM is {ratios[0]:.2f}× generate, {ratios[1]:.2f}× HFEngine")


def seconds_of(engine: RolloutEngine, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> float:
    started = time.perf_counter()
    rollout = engine.generate(batch, sampling, seed)
    seconds = time.perf_counter() - started
    assert {len(c.token_ids) for c in rollout.completions} == {sampling.max_new_tokens}
    return seconds


def compare_sync(engine: VLLMEngine, backbone: PolicyBackbone, model: nn.Module, repeats: int) -> None:
    """Prints the seconds of a sync and of copying as many bytes."""
    syncs, copies = [], []
    for version in range(repeats + 1):
        report = engine.sync(backbone.sync_weights(model), version)
        syncs.append(report.seconds)
        started = time.perf_counter()
        copied = [weight.clone() for _, weight in backbone.sync_weights(model)]
        copies.append(time.perf_counter() - started)
    sync, copy = statistics.median(syncs[1:]), statistics.median(copies[1:])
    print(
        f"sync of {len(copied)} weights, {report.bytes / 2**20:.1f} MiB: {sync:.4f} s, copying the same bytes "
        f"{copy:.4f} s, {sync / copy:.1f}× ({(sync - copy) / len(copied) * 1000:.2f} ms a weight on top)"
    )


def measure_proof(policy: Path, steps: int) -> None:
    """Trains through the command line and prints the proof's and the sync's share of a step."""
    with tempfile.TemporaryDirectory() as folder:
        logger = f"{{class_path: CSVLogger, init_args: {{save_dir: {folder}, name: logs, version: ''}}}}"
        command = [
            *(sys.executable, "-m", "pixelthink", "fit", "--config", "configs/tiny_vllm.yaml"),
            *(f"--model.policy.path={policy}", f"--data.train.size={8 * steps}", "--data.val=null"),
            *("--trainer.val_check_interval=null", "--trainer.callbacks=[RolloutWeightSync]"),
            *(f"--trainer.logger={logger}", "--trainer.enable_progress_bar=false"),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with (Path(folder) / "logs/metrics.csv").open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("seconds/step")][WARM_UP_STEPS:]
    step, proof, sync = (
        statistics.median(float(row[name]) for row in rows)
        for name in ("seconds/step", "sync/proof_seconds", "sync/seconds")
    )
    print(f"a training step takes {step:.2f} s: the proof {proof / step:.1%} of it, the sync {sync / step:.1%}")


if __name__ == "__main__":
    main()
