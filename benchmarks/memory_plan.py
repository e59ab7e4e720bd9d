"""Memory that a training step was predicted to hold, against what it was seen to hold, for small models of four shapes.

    python benchmarks/memory_plan.py

Each step (images, last decoded token, reference, forward and backward, optimizer) is taken for real in a process of its
own, and the growth of that process's resident memory, which no part of the prediction has a hand in, is compared with
the plan. docs/memory.md holds what was seen; `tests/integration/test_memory_plan.py` asserts the bound.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import CLI

BOUND = 0.15
"""Largest difference that is accepted, as a share of what was measured."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MIB = 2**20


@dataclass(frozen=True)
class Shape:
    """A model and a step.

    Attributes:
        family: `qwen2_5_vl` or `qwen3_vl`.
        text: What differs in the language model.
        tied: Whether its head is its embedding.
        frozen: Whether the vision tower is.
        image_side: Side of each image in pixels.
        response_tokens: Tokens of each completion.
        prompts: Prompts of the step, each with four completions.
        micro_batch_size: Completions of a forward and backward.
    """

    family: str
    text: dict[str, int]
    tied: bool
    frozen: bool
    image_side: int
    response_tokens: int
    prompts: int = 2
    micro_batch_size: int = 4


def _text(hidden: int, layers: int, intermediate: int, vocabulary: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 128,
    }


SHAPES = {
    "deep": Shape("qwen2_5_vl", _text(256, 12, 768, 4_000), True, True, image_side=224, response_tokens=96),
    "vocabulary": Shape("qwen2_5_vl", _text(256, 4, 512, 60_000), False, True, image_side=112, response_tokens=160),
    "image": Shape("qwen3_vl", _text(256, 6, 768, 8_000), True, False, image_side=448, response_tokens=48),
    "wide": Shape("qwen3_vl", _text(768, 4, 2_048, 8_000), False, True, 224, response_tokens=64, micro_batch_size=8),
}


def config_of(shape: Shape) -> dict[str, Any]:
    """The model's config.json."""
    sections = [12, 10, 10]
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}
    vision = {
        "depth": 6,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_heads": 4,
        "out_hidden_size": shape.text["hidden_size"],
        "patch_size": 14,
    }
    if shape.family == "qwen2_5_vl":
        vision |= {"fullatt_block_indexes": [2, 5], "window_size": 112}
    else:
        rope["mrope_interleaved"] = True
        vision |= {"num_position_embeddings": 1024, "deepstack_visual_indexes": [1, 3]}
    text = {**shape.text, "rope_parameters": rope, "head_dim": 64}
    ids = {name: 10 + i for i, name in enumerate(("bos_token_id", "eos_token_id", "pad_token_id"))}
    return {
        "model_type": shape.family,
        "tie_word_embeddings": shape.tied,
        "text_config": {**text, **ids},
        "vision_config": vision,
        "image_token_id": 5,
        "video_token_id": 6,
        "vision_start_token_id": 7,
        "vision_end_token_id": 8,
    }


def parts(shape: Shape, checkpointing: bool, folder: Path) -> tuple[Any, Any]:
    """Module and step size of a shape."""
    from torch.optim import AdamW

    from pixelthink.grpo.loss import GRPOConfig
    from pixelthink.planning.step import StepSize
    from pixelthink.policies.qwen3_vl import Qwen3VL
    from pixelthink.policies.qwen_vl import Qwen25VL
    from pixelthink.rollouts.base import SamplingConfig
    from pixelthink.training.grpo_module import GRPOModule

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(shape)), encoding="utf-8")
    family = Qwen25VL if shape.family == "qwen2_5_vl" else Qwen3VL
    options = {"freeze_vision_tower": shape.frozen, "gradient_checkpointing": checkpointing}
    module = GRPOModule(
        family(str(folder), dtype="float32", local_files_only=True, **options),  # type: ignore[arg-type]
        sampling=SamplingConfig(group_size=4, max_new_tokens=shape.response_tokens),
        grpo=GRPOConfig(micro_batch_size=shape.micro_batch_size),
        optimizer=lambda parameters: AdamW(parameters, lr=1e-6),
    )
    size = StepSize(shape.prompts, 40, (shape.image_side, shape.image_side), 4, shape.response_tokens)
    return module, size


def predicted(shape: Shape, checkpointing: bool, folder: Path) -> int:
    """Bytes of the fullest phase, computed with shapes only."""
    from pixelthink.planning.simulate import simulate_step
    from pixelthink.rollouts.hf import HFEngine

    module, size = parts(shape, checkpointing, folder)
    phases, _ = simulate_step(module, HFEngine(), size)
    return max(phase.total() for phase in phases.values())


def measured(shape: Shape, checkpointing: bool, folder: Path) -> int:
    """Bytes by which this process's resident memory grew at most in a real step, its model and optimizer included."""
    tiny = Shape(shape.family, _text(128, 1, 128, 100), True, False, 56, 4)
    take_step(tiny, checkpointing, folder / "tiny")  # what libraries allocate when they are first called
    libc = ctypes.CDLL(None)
    for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):  # freed tensors go back to the system at once
        libc.mallopt(option, 64 * 1024)
    gc.collect()
    libc.malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # begin a new peak
    take_step(shape, checkpointing, folder)
    return memory("VmHWM") - before


def take_step(shape: Shape, checkpointing: bool, folder: Path) -> None:
    """A second step for real: the optimizer has its states already."""
    import torch

    from pixelthink.planning.simulate import load, optimizer_with_states
    from pixelthink.planning.step import run_step
    from pixelthink.planning.tracking import Ledger
    from pixelthink.rollouts.hf import HFEngine

    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True, parents=True)
    module, size = parts(shape, checkpointing, folder)
    nobody = Ledger()  # not entered: it sees no operator
    load(module, nobody)
    run_step(module, HFEngine(), optimizer_with_states(module, nobody, on_gpu=False), size)


def memory(field: str) -> int:
    """Bytes of a field of this process's /proc status."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def compare(name: str, checkpointing: bool) -> dict[str, Any]:
    """A row of the table; call it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        shape = SHAPES[name]
        started = time.perf_counter()
        seen = measured(shape, checkpointing, Path(folder))
        taken = time.perf_counter() - started
        expected = predicted(shape, checkpointing, Path(folder))
    return {"shape": name, "checkpointing": checkpointing, "measured": seen, "predicted": expected, "seconds": taken}


def rows(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The table row by row, each from a process that has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.memory_plan", "pixelthink.planning.plan"])
    for name in names:
        for checkpointing in (False, True):
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                yield pool.submit(compare, name, checkpointing).result()


def main(shapes: tuple[str, ...] = tuple(SHAPES)) -> None:
    """Prints the table.

    Args:
        shapes: Which of the shapes.
    """
    print("| shape | gradient checkpointing | measured MiB | predicted MiB | predicted / measured |")
    print("|---" * 5 + "|")
    for row in rows(shapes):
        ratio = row["predicted"] / row["measured"]
        verdict = "" if abs(ratio - 1) <= BOUND else f" beyond {BOUND:.0%}"
        cells = [row["shape"], "yes" if row["checkpointing"] else "no"]
        cells += [f"{row[key] / MIB:.0f}" for key in ("measured", "predicted")]
        print("| " + " | ".join([*cells, f"{ratio:.3f}{verdict}"]) + " |", flush=True)


if __name__ == "__main__":
    CLI(main, as_positional=False)
