"""Evaluates a policy with each segmenter, on the held-out split of ShapeScenes and on a ReasonSeg folder.

    python tools/evaluate_segmenters.py --photos ../shared/photos --output runs/segmenters

Every pair of segmenter and data gets a folder `SEGMENTER_DATA` with `samples.jsonl`, `metrics.json` and `report.html`,
and a curve in `OUTPUT/logs` for TensorBoard; a table of all is printed at the end.

SAM 2 needs a checkpoint: `--sam2` for the `sam2` package, `--hf_sam2` for transformers. Without one its weights are
seeded random numbers, which show that the path works and nothing else; folder, table and report say so.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser

from pixelthink.evaluation.finished_run import read_run
from pixelthink.evaluation.report.page import REPORT, ReportOptions, write_report

SEGMENTERS = ("GrabCut", "SAM2", "HFSAM2")
RANDOM_NOTE = (
    "The segmenter's weights are random numbers: this page shows that {name} runs from image to mask, and its IoUs "
    "mean nothing. Boxes, points, texts, lengths and times are real."
)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: its name, the options that make it, and what its report must say."""

    name: str
    options: tuple[str, ...]
    note: str | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        options = build_parser().parse_args(arguments)
        if unknown := set(options.segmenters) - set(SEGMENTERS):
            raise ValueError(f"--segmenters: unknown {', '.join(sorted(unknown))}; known: {', '.join(SEGMENTERS)}")
        output = Path(options.output)
        output.mkdir(parents=True, exist_ok=True)
        lines = [f"{'evaluation':32}{'N':>6}{'gIoU':>8}{'cIoU':>8}{'tokens':>8}{'segmentation':>15}"]
        for evaluation in evaluations(options, output):
            lines.append(run(evaluation, output, options.config))
    except (ArgumentError, ImportError, OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def build_parser() -> ArgumentParser:
    """The options."""
    parser = ArgumentParser(
        prog="evaluate_segmenters.py", description=(__doc__ or "").split("\n")[0], exit_on_error=False
    )
    parser.add_argument("--config", type=str, default="configs/eval/tiny.yaml", help="Policy, prompt and sizes.")
    parser.add_argument("--photos", type=str | None, default=None, help="ReasonSeg folder; left out without one.")
    parser.add_argument("--output", type=str, default="runs/segmenters", help="Where the folders go.")
    parser.add_argument("--segmenters", type=list[str], default=list(SEGMENTERS), help=f"Some of {SEGMENTERS}.")
    parser.add_argument("--sam2", type=str | None, default=None, help="Checkpoint for SAM2: a file or hub id.")
    parser.add_argument("--hf_sam2", type=str | None, default=None, help="Checkpoint for HFSAM2: a folder or hub id.")
    parser.add_argument("--size", type=int, default=384, help="ShapeScenes for GrabCut.")
    parser.add_argument("--sam_size", type=int, default=8, help="ShapeScenes for SAM 2; seconds each on a CPU.")
    return parser


def evaluations(options: object, output: Path) -> Iterator[Evaluation]:
    """Every pair of segmenter and data that was asked for."""
    for name in options.segmenters:  # type: ignore[attr-defined]
        given = {"SAM2": options.sam2, "HFSAM2": options.hf_sam2}.get(name)  # type: ignore[attr-defined]
        is_random = name != "GrabCut" and given is None
        checkpoint = str(random_weights(name, output)) if is_random else given
        segmenter = [f"--model.segmenter={name}"]
        segmenter += [f"--model.segmenter.checkpoint={checkpoint}"] if checkpoint else []
        size = options.size if name == "GrabCut" else options.sam_size  # type: ignore[attr-defined]
        data = {"shapes": [f"--data.test.size={size}"]}
        if options.photos is not None:  # type: ignore[attr-defined]
            photos = f"--data.test.root={options.photos}"  # type: ignore[attr-defined]
            data["photos"] = ["--data.test=ReasonSeg", photos, "--data.test.texts=all"]
        label = f"{name.lower()}{'_random' if is_random else ''}"
        for kind, chosen in data.items():
            note = RANDOM_NOTE.format(name=name) if is_random else None
            yield Evaluation(f"{label}_{kind}", (*segmenter, *chosen), note)


def random_weights(name: str, output: Path) -> Path:
    """A checkpoint of seeded random weights for a segmenter, in its own format."""
    path = output / "random_weights" / (f"{name}.pt" if name == "SAM2" else name)
    path.parent.mkdir(exist_ok=True)
    torch.manual_seed(0)
    if name == "SAM2":
        try:
            from sam2.build_sam import build_sam2
        except ImportError:
            raise ImportError("SAM2 needs the sam2 package: pip install sam2") from None
        torch.save({"model": build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu").state_dict()}, path)
    else:
        from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

        Sam2Model(Sam2Config()).save_pretrained(path)
        Sam2Processor(Sam2ImageProcessor()).save_pretrained(path)
    return path


def run(evaluation: Evaluation, output: Path, config: str) -> str:
    """Runs one evaluation in a process of its own; returns its line of the table.

    Raises:
        ValueError: it failed; names it. What it said stands above.
    """
    folder = output / evaluation.name
    logger = (
        f"{{class_path: TensorBoardLogger, init_args: {{save_dir: {output}, name: logs, version: {evaluation.name}}}}}"
    )
    own = [f"--trainer.callbacks.path={folder}", f"--trainer.logger={logger}", "--trainer.enable_progress_bar=false"]
    command = [sys.executable, "-m", "pixelthink", "test", f"--config={config}", *evaluation.options, *own]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise ValueError(f"the evaluation {evaluation.name} failed, see above")
    finished = read_run(folder)
    if evaluation.note is not None:
        write_report(folder / REPORT, finished, options=ReportOptions(note=evaluation.note))
    found = finished.metrics
    scores = f"{found['giou']:>8.3f}{found['ciou']:>8.3f}{found['reasoning_tokens']:>8.1f}"
    return f"{evaluation.name:32}{found['n']:>6}{scores}{found['segmentation_ms']:>12.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
