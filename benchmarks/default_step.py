"""What a step of the default run costs: as configs/tiny.yaml does it, and as other trainers would do the same step.

    python benchmarks/default_step.py

"plain" samples with transformers' `generate` and scores padded rows, so that every prompt and image is encoded once
for each completion, three times over; all else is equal. Both train side by side from the same policy on the same
prompts, one step at a time in turn, so that both meet the same noise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WAYS: dict[str, tuple[str, ...]] = {
    "plain": ("--model.rollout=plain_generate.PlainGenerate", "--model.policy.logprobs=padded"),
    "as configured": (),
}
PHASES = ("generate", "reward", "logprobs", "update", "step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/tiny.yaml")
    parser.add_argument("--steps", type=int, default=8, help="measured steps, after one for warm-up")
    options = parser.parse_args()
    os.chdir(ROOT)
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    workers = []
    for way, overrides in WAYS.items():
        pipes[way], end = context.Pipe()
        work = (end, options.config, overrides, options.steps + 1)
        workers.append(context.Process(target=train, args=work, daemon=True))
        workers[-1].start()
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for step in range(options.steps + 1):
        for way, pipe in pipes.items():
            pipe.send("step")
            found = pipe.recv()
            rows[way] += [found] if step else []
            print(f"{way} {step or 'warm-up'}: {json.dumps({k: round(v, 3) for k, v in found.items()})}", flush=True)
    for worker in workers:
        worker.join()
    medians = {way: {key: statistics.median(row[key] for row in rows[way]) for key in PHASES} for way in WAYS}
    print(f"\n{'seconds':14}" + "".join(f"{way:>16}" for way in WAYS) + f"{'ratio':>8}")
    for key in PHASES:
        plain, ours = (medians[way][key] for way in WAYS)
        print(f"{key:14}{plain:16.3f}{ours:16.3f}" + (f"{plain / ours:8.2f}" if key != "reward" else ""))


def train(pipe: Connection, config: str, overrides: tuple[str, ...], steps: int) -> None:
    """Trains for some steps, each when the parent says so, and reports the seconds of its phases."""
    import lightning as L

    from pixelthink.cli.main import PixelThinkCLI
    from pixelthink.cli.registry import load_components

    class InTurn(L.Callback):
        def on_train_batch_start(self, *rest: Any) -> None:
            pipe.recv()

        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            pipe.send(
                {
                    name.partition("/")[2]: float(seconds)
                    for name, seconds in trainer.callback_metrics.items()
                    if name.startswith("seconds/")
                }
            )

    load_components()
    PixelThinkCLI(
        args=[
            "fit",
            f"--config={config}",
            *("--data.val=null", "--trainer.val_check_interval=null", "--trainer.callbacks=[]"),
            *("--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"),
            *("--trainer.enable_model_summary=false", f"--trainer.max_steps={steps}"),
            *overrides,
        ],
        callbacks=[InTurn()],
    )


if __name__ == "__main__":
    main()
