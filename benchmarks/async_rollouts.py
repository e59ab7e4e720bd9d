"""What sampling the next rollout during a step buys: steps in turn against steps ahead, on one rollout server.

    python benchmarks/async_rollouts.py --steps 12

Starts a server of the tiny policy on loopback, trains twice through the command line, with `sample_ahead` off and on,
and prints both median step times, their phases, and the ratio. At best a step takes as long as the longer of sampling
and training; server and trainer need cores (or GPUs) of their own for that, so the core counts are printed too.
"""

from __future__ import annotations

import argparse
import csv
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PHASES = ("generate", "reward", "logprobs", "update")
WARM_UP = 2
"""Steps that do not count."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=8, help="prompts per step, eight completions each")
    parser.add_argument("--tokens", type=int, default=150, help="most tokens of a completion")
    parser.add_argument("--policy", type=Path, default=Path("assets/tiny_policy"))
    options = parser.parse_args()
    environment = {**os.environ, "PIXELTHINK_API_KEY": secrets.token_hex(16), "HF_HUB_OFFLINE": "1"}
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    environment.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder, server(options.policy, Path(folder), environment) as address:
        runs = {
            name: train(name, ahead, address, Path(folder), options, environment)
            for name, ahead in (("in turn", False), ("ahead", True))
        }
    print(f"{os.cpu_count()} cores for server and trainer together, {environment['OMP_NUM_THREADS']} thread(s) each")
    for name, seconds in runs.items():
        phases = ", ".join(f"{phase} {seconds[phase]:.2f}" for phase in PHASES)
        print(f"{name:8} {seconds['step']:.2f} s a step ({phases})")
    alone = runs["in turn"]
    rest = alone["step"] - alone["generate"]
    bound = alone["step"] / max(rest, alone["generate"])
    print(f"in turn / ahead: {alone['step'] / runs['ahead']['step']:.2f} (at best {bound:.2f}, with cores for both)")


@contextmanager
def server(policy: Path, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Address of a server that reloads weights from FOLDER/weights."""
    (folder / "weights").mkdir()
    command = [
        *(sys.executable, "-m", "pixelthink.serving", "--model", str(policy), "--port", "0", "--dtype", "float32"),
        *("--max_model_len", "512", "--enforce_eager", "true", "--weights_folder", str(folder / "weights")),
    ]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("pixelthink.serving: ") and " at " in line:
                yield line.split(" at ")[1].split(",")[0]
                break
        else:
            raise SystemExit((folder / "server.log").read_text()[-2000:])
    finally:
        process.terminate()
        process.communicate()


def train(
    name: str, ahead: bool, address: str, folder: Path, options: argparse.Namespace, environment: dict[str, str]
) -> dict[str, float]:
    """Median seconds of a step and of its phases, over one run."""
    logs = folder / name.replace(" ", "_")
    command = [
        *(sys.executable, "-m", "pixelthink", "fit", "--config", "configs/tiny.yaml"),
        *("--config", "configs/rollout/vllm_server.yaml", f"--model.policy.path={options.policy}"),
        *(f"--model.rollout.servers=[{address}]", f"--model.rollout.weights_folder={folder / 'weights'}"),
        f"--model.sampling.max_new_tokens={options.tokens}",
        *(f"--model.sample_ahead={str(ahead).lower()}", "--model.grpo.rollout_correction=token_truncate"),
        *(f"--data.batch_size={options.prompts}", f"--data.train.size={options.steps * options.prompts}"),
        *("--data.val=null", "--trainer.val_check_interval=null", "--trainer.callbacks=[]"),
        *("--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"),
        f"--trainer.logger={{class_path: CSVLogger, init_args: {{save_dir: {logs}, name: '', version: ''}}}}",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    with next(logs.rglob("metrics.csv")).open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("seconds/step")][WARM_UP:]
    return {phase: statistics.median(float(row[f"seconds/{phase}"]) for row in rows) for phase in (*PHASES, "step")}


if __name__ == "__main__":
    main()
