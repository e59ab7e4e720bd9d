"""What would make a run smaller, each option tried by planning the run with it."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from torch.optim import Adam

from pixelthink.cli.registry import load_components
from pixelthink.parallel.strategy import FSDP2
from pixelthink.planning.plan import GIB, Machine, MemoryPlan, plan_run
from pixelthink.planning.run import Run
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.policies.reference import FrozenCopy
from pixelthink.rollouts.hf import HFEngine

QUIET = ("lightning", "lightning.fabric", "lightning.pytorch", "transformers", "bitsandbytes")
"""Loggers that tell of seeds and kernels, of which a plan needs nothing."""


@dataclass(frozen=True)
class Option:
    """A change of a run.

    Attributes:
        arguments: What to add to the command line.
        price: What it costs.
    """

    arguments: tuple[str, ...]
    price: str


@dataclass(frozen=True)
class Trial:
    """An option and what became of the plan.

    Attributes:
        option: The option.
        saving: Bytes by which the fullest phase shrinks on each GPU.
        fits: Whether the run then fits.
    """

    option: Option
    saving: int
    fits: bool


def options_for(run: Run) -> list[Option]:
    """The changes that a run has not made yet."""
    return [Option(arguments, price) for arguments, price, applies in _options(run) if applies]


def _options(run: Run) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    module, policy = run.module, run.module.answerer.backbone
    size, group = run.data.image_size, module.sampling.group_size
    if isinstance(policy, Qwen25VL):
        checkpointing = ("--model.policy.gradient_checkpointing=true",)
        yield checkpointing, "about a third more time in the update", not policy.gradient_checkpointing
        frozen = ("--model.policy.freeze_vision_tower=true",)
        yield frozen, "the vision tower is not trained, as in the paper", not policy.freeze_vision_tower
        half = ("--model.policy.dtype=bfloat16",)
        yield half, "steps of a learning rate near 1e-6 vanish in bfloat16", policy.dtype == "float32" and run.on_gpu
    optimizer = run.optimizer_class
    adam = issubclass(optimizer, Adam)
    yield ("--model.optimizer.init_args.fused=true",), "none", adam and run.on_gpu and not run.optimizer_option("fused")
    eight = "states in 8 bits; pip install bitsandbytes"
    yield ("--model.optimizer=bitsandbytes.optim.AdamW8bit",), eight, adam and not run.sharded
    paged = "states in 8 bits that move to the host's memory when the GPU is full; pip install bitsandbytes"
    yield ("--model.optimizer=bitsandbytes.optim.PagedAdamW8bit",), paged, adam and run.on_gpu and not run.sharded
    if isinstance(policy, Qwen25VL) and policy.adapter is None:
        adapter = ("--model.policy.adapter.rank=16", "--model.reference=AdapterOff")
        yield adapter, "an adapter is trained and not the weights; its reference is the policy without it", True
        four = (*adapter, "--model.policy.quantization=nf4", "--model.policy.dtype=bfloat16")
        yield four, "as before, and the language model's weights are rounded to 4 bits", run.on_gpu
    copied = module.grpo.kl_coef > 0 and type(module.reference) is FrozenCopy
    yield (
        ("--model.reference.offload=true",),
        "the reference travels to the GPU and back in each step",
        (
            copied and not run.sharded and not module.reference.offload  # type: ignore[attr-defined]
        ),
    )
    rounded = "KL is measured against rounded weights and does not start at 0"
    yield ("--model.reference=QuantizedCopy",), rounded, copied and not run.sharded and run.on_gpu
    no_reference = "no KL to the start: nothing but the clipping holds the policy back"
    yield ("--model.grpo.kl_coef=0",), no_reference, module.grpo.kl_coef > 0
    micro = min(module.grpo.micro_batch_size, run.prompts * group)
    if not module.grpo.micro_batch_tokens:
        for smaller in {micro // 2, 1} - {0, micro}:
            yield (f"--model.grpo.micro_batch_size={smaller}",), "more passes, each prompt computed in several", True
    shorter = module.sampling.max_new_tokens // 2
    cut = "longer completions are cut off and score as unfinished"
    yield (f"--model.sampling.max_new_tokens={shorter}",), cut, shorter > 0
    fewer = tuple(side // 56 * 28 if side % 28 == 0 else side // 64 * 32 for side in size)
    coarser = f"--data.image_size=[{fewer[0]}, {fewer[1]}]"
    yield (coarser,), "small objects are seen less well; thresholds in pixels mean other things", min(fewer) > 0
    if isinstance(run.engine, HFEngine):
        together = run.engine.batch_size // group if run.engine.batch_size else run.prompts
        yield (f"--model.rollout.batch_size={group}",), "rollouts take longer", together > 1
    sharding = f"--trainer.strategy={{class_path: {FSDP2.__module__}.FSDP2}}"
    yield (sharding,), "more traffic between GPUs", run.gpus > 1 and not run.sharded


def try_options(
    arguments: Sequence[str],
    machine: Machine,
    plan: MemoryPlan,
    options: Sequence[Option],
    report: Callable[[], object] = lambda: None,
    response_tokens: int | None = None,
    text_tokens: int | None = None,
) -> list[Trial]:
    """Plans a run once with each option, several at a time.

    Args:
        arguments: The run's command line.
        machine: Where it runs.
        plan: The plan without any.
        options: What to try.
        report: Called after each.
        response_tokens: As for `plan_run`.
        text_tokens: As for `plan_run`.

    Returns:
        Those that save a hundredth of a GiB or more, the most first.
    """
    workers = min(len(options), os.cpu_count() or 1)
    trials = []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # so that imports, the slowest part of small plans, are made once
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker) as pool:
        waiting = {
            pool.submit(_changed, [*arguments, *option.arguments], machine, response_tokens, text_tokens): option
            for option in options
        }
        for done in as_completed(waiting):
            changed = done.result()
            trials.append(Trial(waiting[done], plan.peak - changed.peak, changed.fits(machine)))
            report()
    return sorted((trial for trial in trials if trial.saving >= GIB / 100), key=lambda trial: -trial.saving)


def _prepare_worker() -> None:
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    load_components()


def _changed(
    arguments: Sequence[str], machine: Machine, response_tokens: int | None, text_tokens: int | None
) -> MemoryPlan:
    return plan_run(Run.of(arguments, machine.gpus), machine, response_tokens, text_tokens)


def that_fit_together(
    arguments: Sequence[str],
    machine: Machine,
    trials: Sequence[Trial],
    response_tokens: int | None = None,
    text_tokens: int | None = None,
) -> tuple[list[Option], MemoryPlan] | None:
    """The options that save most, as many as make the run fit; None where all together do not."""
    chosen: list[Option] = []
    taken: set[str] = set()
    for trial in trials:
        names = {argument.split("=")[0] for argument in trial.option.arguments}
        if names & taken:  # of two values of one option the one that saves more
            continue
        chosen.append(trial.option)
        taken |= names
        together = [argument for option in chosen for argument in option.arguments]
        plan = _changed([*arguments, *together], machine, response_tokens, text_tokens)
        if plan.fits(machine):
            return chosen, plan
    return None
