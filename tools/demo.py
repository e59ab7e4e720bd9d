"""Tests a policy, trains it, tests it again, and prints one table: start → trained.

python tools/demo.py --config configs/tiny.yaml
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from jsonargparse import CLI
from omegaconf import OmegaConf

from pixelthink.metrics.segmentation import HEADLINES

COLUMNS = {heading: metric for heading, metric in HEADLINES.items() if heading != "gIoU easy"}


def run(*arguments: str) -> None:
    """Runs the package's command line and stops where it fails."""
    print("$ python -m pixelthink", *arguments, flush=True)
    status = subprocess.run([sys.executable, "-m", "pixelthink", *arguments], check=False).returncode
    if status:
        raise SystemExit(status)


def test(config: str, output: Path, *overrides: str) -> dict[str, float]:
    """Metrics of a policy on the config's test split, also written to `output`."""
    writer = ("--trainer.callbacks+=ResultsWriter", f"--trainer.callbacks.path={output}")
    run("test", "--config", config, *writer, *overrides)
    return dict(json.loads((output / "metrics.json").read_text(encoding="utf-8")))


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as a Markdown table, one row a run; "-" where a run has no such number."""
    lines = ["| policy | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, metrics in results.items():
        cells = []
        for key in COLUMNS.values():
            decimals = 1 if key.startswith("reasoning_tokens") else 3
            cells.append(f"{metrics[key]:.{decimals}f}" if key in metrics else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def exported_policy(config: str) -> str:
    """Folder to which the config's `HFExport` callback writes the trained policy."""
    loaded = OmegaConf.to_container(OmegaConf.load(config), resolve=True)
    for callback in loaded["trainer"].get("callbacks", []):  # type: ignore[index,call-overload]
        if callback["class_path"].rsplit(".")[-1] == "HFExport":
            return str(callback["init_args"]["path"])
    raise SystemExit(f"demo: {config} has no HFExport callback, so there is no trained policy to test")


def main(config: str = "configs/tiny.yaml") -> None:
    """Tests the start policy, trains it, tests the trained one and prints the table.

    Args:
        config: Run configuration with an `HFExport` callback.
    """
    policy = exported_policy(config)
    output = Path(policy).parent
    before = test(config, output / "start")
    started = time.perf_counter()
    run("fit", "--config", config)
    minutes = (time.perf_counter() - started) / 60
    after = test(config, output / "trained", f"--model.policy.path={policy}")
    print(f"\nHeld-out split, greedy answers; training took {minutes:.1f} minutes.\n")
    print(table({"start": before, "trained": after}))
    print(f"\nCurves and pictures: {Path(sys.executable).parent}/tensorboard --logdir runs")


if __name__ == "__main__":
    CLI(main, as_positional=False)
