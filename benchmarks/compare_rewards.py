"""Trains the tiny policy with three rewards from several seeds, tests each, and prints one Markdown table.

    python benchmarks/compare_rewards.py --output runs/compare --seeds 0 1 2

All runs start from the same policy, take the same number of steps on the same prompts, and are tested greedily on the
same held-out split. Two run side by side, one thread each. A run whose metrics are already there is not repeated;
one that was made from another config, start policy or options is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jsonargparse import CLI
from omegaconf import OmegaConf

from pixelthink.metrics.segmentation import HEADLINES

REWARDS = {
    "accuracy only": ("--model.reward.length=NoLengthScore",),
    "released rule": (),
    "TokenBudget": (
        "--model.reward.length=TokenBudget",
        "--model.reward.length.easy_tokens=8",
        "--model.reward.length.hard_tokens=24",
        "--model.reward.length.uncertainty_tokens=4",
        "--model.reward.length.easy_bonus=0.05",
        "--model.reward.length.hard_bonus=0.02",
    ),
}
COLUMNS = HEADLINES
Metrics = dict[str, float]


def pixelthink(arguments: Sequence[str], log: Path) -> None:
    """Runs the package's command line on one thread, its output going to a log.

    Raises:
        RuntimeError: if it fails; names the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        status = subprocess.run(
            [sys.executable, "-m", "pixelthink", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        ).returncode
    if status:
        raise RuntimeError(f"python -m pixelthink {' '.join(arguments)} failed, see {log}")


def fingerprint(config: str, options: Sequence[str] = ()) -> str:
    """What a run is made of: the config's text, the weights that it starts from, and its options."""
    digest = hashlib.sha256(Path(config).read_bytes())
    policy = Path(OmegaConf.select(OmegaConf.load(config), "model.init_args.policy.init_args.path") or "")
    for file in sorted([*policy.glob("*.safetensors"), *policy.glob("config.json")]):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    digest.update("\0".join(options).encode())
    return digest.hexdigest()


def claim(folder: Path, mark: str) -> None:
    """Writes down what a run in a folder is made of.

    Raises:
        RuntimeError: the folder holds a run that is made of something else, or does not say of what.
    """
    file = folder / "fingerprint.txt"
    if folder.is_dir() and any(folder.iterdir()):
        if not file.is_file() or file.read_text(encoding="utf-8").strip() != mark:
            raise RuntimeError(
                f"{folder} holds a run of another config, policy or options: remove it, or give another --output"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(mark + "\n", encoding="utf-8")


def tested(config: str, folder: Path, *overrides: str) -> Metrics:
    """Metrics of a policy on the held-out split, from disk where they are already there; `claim` the folder first."""
    if not (folder / "metrics.json").is_file():
        writer = ("--trainer.callbacks+=ResultsWriter", f"--trainer.callbacks.path={folder}")
        pixelthink(["test", "--config", config, *writer, *overrides], folder / "test.log")
    return dict(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))


def trained(config: str, folder: Path, seed: int, reward: Sequence[str]) -> Metrics:
    """Metrics after training with one reward from one seed."""
    claim(folder, fingerprint(config, [str(seed), *reward]))
    policy = folder / "policy"
    if not (policy / "config.json").is_file():
        export = f"[{{class_path: HFExport, init_args: {{path: {policy}}}}}]"
        fit = ["fit", "--config", config, f"--seed_everything={seed}", f"--data.seed={seed}", *reward]
        fit += [f"--trainer.callbacks={export}", "--data.val=null", "--trainer.val_check_interval=null"]
        fit += [f"--trainer.logger.init_args.save_dir={folder}", "--trainer.enable_progress_bar=false"]
        pixelthink(fit, folder / "fit.log")
    return tested(config, folder, f"--model.policy.path={policy}")


def row(name: str, runs: Sequence[Metrics]) -> str:
    """A table row: mean over runs, ± standard deviation where there are several."""
    cells = []
    for key in COLUMNS.values():
        values = [run[key] for run in runs]
        decimals = 1 if key.startswith("reasoning_tokens") else 3
        spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.{decimals}f}{spread}")
    return f"| {name} | " + " | ".join(cells) + f" | {hard_per_easy(runs):.2f} |"


def hard_per_easy(runs: Sequence[Metrics]) -> float:
    """Mean over runs of reasoning tokens on hard by those on easy queries; huge where easy ones get none."""
    return statistics.mean(run["reasoning_tokens/hard"] / max(run["reasoning_tokens/easy"], 1e-9) for run in runs)


def compare(baseline: Sequence[Metrics], ours: Sequence[Metrics]) -> str:
    """The issue's aim, measured: tokens saved, gIoU gained, hard/easy tokens, gIoU kept on hard queries."""

    def mean(runs: Sequence[Metrics], key: str) -> float:
        return statistics.mean(run[key] for run in runs)

    saved = 1 - mean(ours, "reasoning_tokens") / mean(baseline, "reasoning_tokens")
    gained = mean(ours, "giou") - mean(baseline, "giou")
    hard = mean(ours, "giou/hard") - mean(baseline, "giou/hard")
    return (
        f"{saved:.0%} fewer reasoning tokens, gIoU {gained:+.3f}, on hard {hard:+.3f}, "
        f"hard/easy tokens {hard_per_easy(ours):.2f}"
    )


def main(config: str = "configs/tiny.yaml", output: str = "runs/compare", seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Runs what is missing and prints the table.

    Args:
        config: Run configuration, whose reward is the released rule.
        output: Folder of all runs.
        seeds: One run a reward and seed.
    """
    folder = Path(output)
    jobs = [(name, seed) for seed in seeds for name in REWARDS]
    be_brief = ("--data.prompt=ShortPrompt", "--data.prompt.suffix= be brief.")
    claim(folder / "start", fingerprint(config))
    claim(folder / "start-brief", fingerprint(config, be_brief))
    with ThreadPoolExecutor(max_workers=2) as pool:
        start = pool.submit(tested, config, folder / "start")
        brief = pool.submit(tested, config, folder / "start-brief", *be_brief)
        futures = {
            job: pool.submit(trained, config, folder / f"{job[0].replace(' ', '-')}-{job[1]}", job[1], REWARDS[job[0]])
            for job in jobs
        }
        results = {job: future.result() for job, future in futures.items()}
    print("| policy | " + " | ".join(COLUMNS) + " | hard/easy |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    print(row("start", [start.result()]))
    print(row("start, told to be brief", [brief.result()]))
    groups = {name: [results[name, seed] for seed in seeds] for name in REWARDS}
    for name, runs in groups.items():
        print(row(name, runs))
    for name in list(REWARDS)[1:]:
        print(f"\n{name} against accuracy only: {compare(groups['accuracy only'], groups[name])}")


if __name__ == "__main__":
    CLI(main, as_positional=False)
