"""One GRPO step of this package against one of TRL's, on the same model, images and shapes, in turn on one machine.

    pip install trl==1.16.0
    python benchmarks/step_vs_trl.py

Each trainer runs in a process of its own, so that their memory is told apart; the parent lets one step at a time, so
that both meet the same noise. Both sample with transformers modules; KL is on; all completions have full length; the
vision tower is trained. At the end loss and gradient of both are computed on the same rollout. TRL's KL correction,
which multiplies the KL by a differentiable ratio and is on by default, is off, so that the gradients can be equal.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

TRL_VERSION = "1.16.0"
PHASES = ("rollout", "update", "step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 4], help="prompt groups per step")
    parser.add_argument("--steps", type=int, default=5, help="measured steps, after one for warm-up")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each completion")
    parser.add_argument("--image-side", type=int, default=840, help="a multiple of 28")
    parser.add_argument("--hidden-size", type=int, default=192)
    options = parser.parse_args()
    require_trl()
    with tempfile.TemporaryDirectory() as folder:
        save_policy(Path(folder), options.image_side, options.hidden_size)
        for groups in options.groups:
            print(f"\n{groups} group(s) × {options.group_size} completions × {options.tokens} tokens, "
                  f"image {options.image_side}², seconds (median of {options.steps} steps)")  # fmt: skip
            report(compare(folder, groups, options))


def require_trl() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("trl")
    except PackageNotFoundError:
        raise SystemExit(f"pip install trl=={TRL_VERSION}") from None
    if found != TRL_VERSION:
        print(f"note: trl is {found}, this benchmark was written for {TRL_VERSION}")


def compare(folder: str, groups: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Lets both trainers step in turn; medians by trainer and phase, and peak memory in MiB above the start's."""
    context = multiprocessing.get_context("spawn")
    settings = {**vars(options), "groups": groups, "folder": folder}
    pipes, workers = {}, []
    for name, work in {"pixelthink": run_ours, "trl": run_trl}.items():
        pipes[name], end = context.Pipe()
        workers.append(context.Process(target=work, args=(end, settings), daemon=True))
        workers[-1].start()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in pipes}
    for step in range(options.steps + 1):
        for name, pipe in pipes.items():
            pipe.send("step")
            result = pipe.recv()
            print(f"  {name} {step or 'warm-up'}: {json.dumps(result)}", flush=True)
            rows[name] += [result] if step else []
    table = {
        name: {key: statistics.median(row[key] for row in found) for key in found[0]} for name, found in rows.items()
    }
    for name, pipe in pipes.items():
        pipe.send("end")
        table[name].update(pipe.recv())
    for worker in workers:
        worker.join()
    return table


def report(table: dict[str, dict[str, float]]) -> None:
    ours, theirs = table["pixelthink"], table["trl"]
    print(f"  {'':20}{'pixelthink':>12}{'trl':>12}{'ratio':>8}")
    for key in (*PHASES, "peak_mib"):
        print(f"  {key:20}{ours[key]:12.2f}{theirs[key]:12.2f}{theirs[key] / ours[key]:8.2f}")
    difference = abs(theirs["loss"] - theirs["loss_of_pixelthink"])
    print(f"  same rollout: trl's loss {theirs['loss']:.6f}, pixelthink's {theirs['loss_of_pixelthink']:.6f}, "
          f"difference {difference:.1e}; of gradients {theirs['gradient_difference']:.1e}")  # fmt: skip


def save_policy(folder: Path, image_side: int, hidden_size: int) -> None:
    """A random tiny Qwen2.5-VL in Hugging Face format."""
    from pixelthink.policies.tiny import FreshTinyQwen25VL

    backbone = FreshTinyQwen25VL(image_side=image_side, hidden_size=hidden_size)
    backbone.setup()
    model = backbone.load_model()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters")
    model.save_pretrained(folder)  # type: ignore[operator]
    backbone.processor.save_pretrained(folder)


def images(count: int, side: int) -> list[Any]:
    from PIL import Image

    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


def memory_mib() -> float:
    """Largest resident size that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_ours(pipe: Connection, settings: dict[str, Any]) -> None:
    """This package's trainer: the Lightning module as users run it."""
    import lightning as L
    from torch.optim import AdamW
    from torch.utils.data import DataLoader

    from pixelthink.data.collate import Collate
    from pixelthink.data.prompts import ShortPrompt
    from pixelthink.geometry import Target
    from pixelthink.grpo.loss import GRPOConfig
    from pixelthink.policies.qwen_vl import Qwen25VL
    from pixelthink.rewards.composite import PixelThinkReward
    from pixelthink.rollouts.base import SamplingConfig
    from pixelthink.training.grpo_module import GRPOModule
    from pixelthink.types import Sample

    class Endless(Qwen25VL):
        stop_token_ids = ()  # type: ignore[assignment]

    class Measured(GRPOModule):
        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            return batch

    class InTurn(L.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *rest: Any) -> None:
            if not hasattr(self, "base"):
                self.base = memory_mib()
            if pipe.recv() == "end":
                pipe.send({"peak_mib": memory_mib() - self.base})
                raise SystemExit
            self.started = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            step, rollout = time.perf_counter() - self.started, float(trainer.callback_metrics["seconds/generate"])
            pipe.send({"rollout": rollout, "update": step - rollout, "step": step})

    side, groups = settings["image_side"], settings["groups"]
    target = Target((10.0, 10.0, 100.0, 100.0), ((30.0, 30.0), (60.0, 60.0)))
    samples = [
        Sample(f"s{i}", image, QUESTION, targets=(target,), difficulty=2.0)
        for i, image in enumerate(images(groups * (settings["steps"] + 2), side))
    ]
    module = Measured(
        Endless(settings["folder"], dtype="float32", local_files_only=True),
        reward=PixelThinkReward(),
        sampling=SamplingConfig(settings["group_size"], settings["tokens"]),
        grpo=GRPOConfig(kl_coef=0.04, entropy_coef=0.0, micro_batch_size=groups * settings["group_size"]),
        optimizer=lambda parameters: AdamW(parameters, lr=1e-4),
    )
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[InTurn()],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    collate = Collate(ShortPrompt(), (side, side), "pixels")
    trainer.fit(module, DataLoader(samples, batch_size=groups, collate_fn=collate))  # type: ignore[arg-type]


QUESTION = "the red circle where the trail ends after the blue square right of the largest diamond"


def run_trl(pipe: Connection, settings: dict[str, Any]) -> None:
    """TRL's trainer with transformers generation."""
    import torch
    from datasets import Dataset
    from transformers import AutoProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from pixelthink.policies.qwen_vl import Qwen25VL

    folder, groups = settings["folder"], settings["groups"]
    backbone = Qwen25VL(folder, dtype="float32", local_files_only=True)
    backbone.setup()
    seen: dict[str, Any] = {"rollout": 0.0}

    class Timed(GRPOTrainer):
        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = super()._generate_single_turn(*args, **kwargs)
            seen["rollout"] = time.perf_counter() - started
            return result

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            loss = super()._compute_loss(model, inputs)
            seen.update(inputs=inputs, loss=loss.item())
            return loss

    class InTurn(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.setdefault("base", memory_mib())
            seen["ended"] = pipe.recv() == "end"
            seen["peak"] = memory_mib() - seen["base"]
            seen["started"] = time.perf_counter()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if seen["ended"]:
                pipe.send({"peak_mib": seen["peak"], "loss": seen["loss"], **our_loss(backbone, model, seen["inputs"])})
                raise SystemExit

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step = time.perf_counter() - seen["started"]
            pipe.send({"rollout": seen["rollout"], "update": step - seen["rollout"], "step": step})

    config = GRPOConfig(
        output_dir=f"{folder}/trl", per_device_train_batch_size=groups * settings["group_size"],
        num_generations=settings["group_size"], max_completion_length=settings["tokens"], beta=0.04, loss_type="bnpo",
        use_cpu=True, bf16=False, learning_rate=1e-4, lr_scheduler_type="constant", gradient_checkpointing=False,
        save_strategy="no", report_to=[], disable_tqdm=True, max_steps=settings["steps"] + 2, temperature=1.0,
        use_bias_correction_kl=False,
        model_init_kwargs={"dtype": torch.float32, "local_files_only": True},
        generation_kwargs={
            "min_new_tokens": settings["tokens"], "suppress_tokens": list(backbone.forbidden_token_ids),
        },
    )  # fmt: skip
    count = groups * (settings["steps"] + 2)
    data = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": f"find {QUESTION}."}]] * count,
            "image": images(count, settings["image_side"]),
        }
    )
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    Timed(
        folder, reward_funcs=variety, args=config, train_dataset=data, processing_class=processor, callbacks=[InTurn()]
    ).train()


def variety(completions: list[Any], **kwargs: Any) -> list[float]:
    """A reward that spreads: different characters of the answer."""
    return [float(len(set(c if isinstance(c, str) else c[0]["content"]))) for c in completions]


def our_loss(backbone: Any, model: Any, inputs: Any) -> dict[str, float]:
    """This package's loss on a rollout of TRL's, with TRL's reference log-probabilities and advantages.

    Returns the loss and the relative difference of the gradients, |ours − TRL's| / |TRL's|. The model holds TRL's,
    clipped to a norm of 1; ours is clipped the same way.
    """
    import torch

    from pixelthink.grpo.loss import GRPOConfig, LossInputs, grpo_loss
    from pixelthink.policies.base import EncodedPrompt

    grids = inputs["image_grid_thw"]
    patches = inputs["pixel_values"].split(grids.prod(dim=1).tolist())
    masks = inputs["completion_mask"].bool()
    prompts = [
        EncodedPrompt(ids[mask.bool()], pixels, grid[None])
        for ids, mask, pixels, grid in zip(inputs["prompt_ids"], inputs["prompt_mask"], patches, grids, strict=True)
    ]
    keys = [(tuple(p.token_ids.tolist()), float(p.pixel_values.sum())) for p in prompts]
    index = [keys.index(key) for key in keys]
    completions = [ids[mask] for ids, mask in zip(inputs["completion_ids"], masks, strict=True)]
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    theirs = torch.cat([parameter.grad.flatten() for parameter in parameters])
    model.zero_grad()
    logprobs = backbone.score(model, prompts, completions, index).logprobs
    config, reference = GRPOConfig(kl_coef=0.04, entropy_coef=0.0), inputs["ref_per_token_logps"]
    loss = grpo_loss(LossInputs(logprobs, logprobs.detach(), reference, masks, inputs["advantages"]), config).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    ours = torch.cat([parameter.grad.flatten() for parameter in parameters])
    return {"loss_of_pixelthink": loss.item(), "gradient_difference": float((ours - theirs).norm() / theirs.norm())}


if __name__ == "__main__":
    main()
