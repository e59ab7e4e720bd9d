"""Cost of log-probabilities and their gradient against group size, image tokens and completion length.

    python benchmarks/scaling.py --output docs/scaling

Writes OUTPUT.json, and OUTPUT.png where matplotlib is installed. Prints the fitted slopes: seconds for one more
completion of a group, for one more image token, for one more token in each completion. With a shared prefix the first
must stay where it is when the image grows: another completion costs its own tokens only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from pixelthink.policies.base import EncodedPrompt
from pixelthink.policies.tiny import FreshTinyQwen25VL

COMPUTATIONS = ("shared_prefix", "padded")
AXES = {"completions": "group size", "image_tokens": "image tokens", "tokens": "tokens of each completion"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--image-tokens", type=int, nargs="+", default=[64, 256, 576, 900], help="square numbers")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 128, 256])
    parser.add_argument("--at", type=int, nargs=3, default=[8, 900, 128], help="where the other two stand meanwhile")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hidden-size", type=int, default=192)
    parser.add_argument("--output", type=Path, default=Path("docs/scaling"))
    options = parser.parse_args()
    backbone = FreshTinyQwen25VL(hidden_size=options.hidden_size)
    backbone.setup()
    model = backbone.load_model()
    fixed = dict(zip(AXES, options.at, strict=True))
    rows = []
    for axis in AXES:
        for value in getattr(options, axis):
            for computation in COMPUTATIONS:
                backbone.logprobs = computation
                seconds = cost(backbone, model, {**fixed, axis: value}, options.repeats)
                rows.append({"axis": axis, "value": value, "computation": computation, "seconds": seconds})
                print(f"{AXES[axis]:28}{value:6}  {computation:14}{seconds:8.3f} s", flush=True)
    summary = {"at": fixed, "rows": rows, "slopes": slopes(rows)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for axis, found in summary["slopes"].items():
        print(f"seconds per one more ({AXES[axis]}): " + ", ".join(f"{k} {v:.2e}" for k, v in found.items()))
    plot(summary, options.output.with_suffix(".png"))


def cost(backbone: FreshTinyQwen25VL, model: Any, shape: dict[str, int], repeats: int) -> float:
    """Median seconds of a forward and backward after one for warm-up."""
    torch.manual_seed(0)
    side = round(shape["image_tokens"] ** 0.5)
    image = torch.full((side * side,), model.config.image_token_id)
    text = torch.randint(300, 400, (50,))
    grid = torch.tensor([[1, 2 * side, 2 * side]])
    prompt = EncodedPrompt(torch.cat([text[:2], image, text[2:]]), torch.randn(4 * side * side, 1176), grid)
    completions = [torch.randint(300, 400, (shape["tokens"],)) for _ in range(shape["completions"])]
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        scores = backbone.score(model, [prompt], completions, [0] * len(completions))
        scores.logprobs.sum().backward()
        times.append(time.perf_counter() - started)
        model.zero_grad()
    return statistics.median(times[1:])


def slopes(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Least-squares slope of seconds over each axis, by computation."""
    found: dict[str, dict[str, float]] = {}
    for axis in AXES:
        for computation in COMPUTATIONS:
            points = [(r["value"], r["seconds"]) for r in rows if (r["axis"], r["computation"]) == (axis, computation)]
            if len(points) > 1:
                x, y = zip(*points, strict=True)
                found.setdefault(axis, {})[computation] = statistics.linear_regression(x, y).slope
    return found


def plot(summary: dict[str, Any], path: Path) -> None:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("no plot: pip install matplotlib")
        return
    figure, panels = plt.subplots(1, len(AXES), figsize=(12, 3.5), layout="constrained")
    for panel, (axis, label) in zip(panels, AXES.items(), strict=True):
        for computation in COMPUTATIONS:
            points = [
                (r["value"], r["seconds"])
                for r in summary["rows"]
                if r["axis"] == axis and r["computation"] == computation
            ]
            panel.plot(*zip(*points, strict=True), "o-", label=computation)
        panel.set(xlabel=label, ylabel="seconds, forward and backward", ylim=(0, None))
    panels[0].legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
