"""What a run holds on each GPU, phase by phase, and whether that fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from pixelthink.errors import UserError
from pixelthink.planning.quantized import ShapedLinear
from pixelthink.planning.run import Run
from pixelthink.planning.simulate import simulate_step
from pixelthink.planning.step import Phases, StepSize
from pixelthink.policies.reference import FrozenCopy
from pixelthink.rollouts.hf import HFEngine
from pixelthink.rollouts.vllm import VLLMEngine
from pixelthink.training.learner import trainable_parameters

GIB = 2**30
PURPOSES = (
    "weights",
    "gradients",
    "optimizer",
    "reference",
    "activations",
    "logits",
    "vision",
    "KV cache",
    "engine",
    "communication",
)
PHASES = ("rollout", "images", "reference", "update", "optimizer")
SHARDED = ("weights", "gradients", "optimizer", "reference")
LASTING = ("weights", "optimizer", "reference")


@dataclass(frozen=True)
class Machine:
    """What there is.

    Attributes:
        gpus: Number of GPUs, one process each.
        gpu_memory: Of each, in GiB.
        reserve: What the driver, NCCL, cuBLAS and fragmentation take of it, in GiB; a guess, not measured here.
    """

    gpus: int = 8
    gpu_memory: float = 80.0
    reserve: float = 3.0

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.gpu_memory <= 0 or not 0 <= self.reserve < self.gpu_memory:
            raise UserError("gpus and gpu_memory must be positive, reserve at least 0 and below gpu_memory")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each GPU.

    Attributes:
        phases: Bytes by purpose at the peak of each phase of a step.
        size: What a process does in a step.
        parameters: Number of the policy's parameters, and of those that are trained.
        most: Bytes of each purpose when there were most of them, which need not be when there was most in all.
    """

    phases: Phases
    size: StepSize
    parameters: tuple[int, int]
    most: Counter[str]

    @property
    def peak(self) -> int:
        """Bytes of the fullest phase."""
        return max(phase.total() for phase in self.phases.values())

    @property
    def fullest(self) -> str:
        """Name of that phase."""
        return max(self.phases, key=lambda name: self.phases[name].total())

    def fits(self, machine: Machine) -> bool:
        """Whether the fullest phase and the reserve fit."""
        return self.peak + machine.reserve * GIB <= machine.gpu_memory * GIB


@dataclass(frozen=True)
class Engine:
    """What a rollout engine beside the policy holds on its GPU; nothing, where it is a server or the policy itself.

    Attributes:
        awake: Bytes by purpose while it samples.
        meanwhile: The same while the policy trains.
    """

    awake: Mapping[str, int]
    meanwhile: Mapping[str, int]

    @staticmethod
    def of(run: Run, machine: Machine) -> Engine:
        """Of the run's engine. The key-value cache gets what the engine's share leaves beside its weights.

        Raises:
            UserError: the engine's share does not hold its weights; one line with both.
        """
        engine, policy = run.engine, run.module.policy
        if not isinstance(engine, VLLMEngine) or not run.on_gpu:
            return Engine({}, {})
        assert policy is not None
        dtype = None if engine.requested_dtype == "auto" else getattr(torch, engine.requested_dtype)
        weights = parameter_bytes(policy.parameters(), dtype) // engine.tensor_parallel_size
        share = round(engine.gpu_memory_share * machine.gpu_memory * GIB)
        cache = round(engine.kv_cache_gib * GIB) or share - weights
        if cache <= 0:
            raise UserError(
                f"model.rollout.gpu_memory_share: {share / GIB:.1f} GiB do not hold the engine's weights of "
                f"{weights / GIB:.1f} GiB"
            )
        awake = {"engine": weights, "KV cache": cache}
        return Engine(awake, {} if engine.sleep_level else awake)


def plan_run(
    run: Run, machine: Machine, response_tokens: int | None = None, text_tokens: int | None = None
) -> MemoryPlan:
    """Takes a training step with shapes only and reports what it would hold.

    Args:
        run: What is planned.
        machine: Where.
        response_tokens: Length of every completion; by default the limit, the worst that can come.
        text_tokens: Tokens of a prompt besides its image's; by default estimated from its characters.
    """
    module = run.module
    size = StepSize(
        run.prompts,
        text_tokens or run.text_tokens,
        run.data.image_size,
        module.sampling.group_size,
        response_tokens or module.sampling.max_new_tokens,
    )
    phases, most = simulate_step(
        module, run.engine, size, autocast=run.autocast(), dtype=run.true_dtype, on_gpu=run.on_gpu
    )
    assert module.policy is not None
    trained = sum(p.numel() for p in trainable_parameters(module.policy))
    packed = [part for part in module.policy.modules() if isinstance(part, ShapedLinear)]
    unpacked = sum(part.in_features * part.out_features - part.weight.numel() for part in packed)
    parameters = (sum(p.numel() for p in module.policy.parameters()) + unpacked, trained)
    engine = Engine.of(run, machine)
    plan = {name: across_processes(name, phase, run) for name, phase in phases.items()}
    if "rollout" not in plan:  # another engine samples: beside it lies what lies there all the time
        idle = {purpose: count for purpose, count in plan["optimizer"].items() if purpose in LASTING}
        plan["rollout"] = Counter({**dict.fromkeys(PURPOSES, 0), **idle})
    for name, phase in plan.items():
        phase.update(engine.awake if name == "rollout" else engine.meanwhile)
    return MemoryPlan({name: plan[name] for name in PHASES}, size, parameters, most)


def across_processes(name: str, phase: Mapping[str, int], run: Run) -> Counter[str]:
    """A phase of one process among several: what they share is divided, and what they exchange is added."""
    found = Counter({purpose: phase.get(purpose, 0) for purpose in PURPOSES})
    assert run.module.policy is not None
    trained = [p for p in run.module.policy.parameters() if p.requires_grad]
    reference = run.module.reference
    if name != "reference" and isinstance(reference, FrozenCopy) and reference.offload:
        found["reference"] = 0
    if run.buckets:
        found["communication"] += sum(p.numel() * p.element_size() for p in trained)
    if run.sharded:
        for purpose in SHARDED + (("activations",) if name == "optimizer" else ()):
            found[purpose] = -(-found[purpose] // run.gpus)
        if name == "update":
            found["communication"] += gathered(run.module.policy, run.gathered_dtype)
        elif name != "optimizer" and (name != "rollout" or isinstance(run.engine, HFEngine)):
            found["communication"] += parameter_bytes(run.module.policy.parameters(), run.gathered_dtype)
    return found


def gathered(model: nn.Module, dtype: torch.dtype | None) -> int:
    """Bytes that sharded processes gather in the update: of two blocks, since the next is fetched ahead, weights and
    gradients, and the weights that are in none. In all other phases they gather the whole model (`parallel.sharding`).

    Args:
        model: The policy.
        dtype: What it is gathered in; the parameters' own where None.
    """
    kinds = {kind for part in model.modules() for kind in (getattr(part, "_no_split_modules", None) or ())}
    blocks = [part for part in model.modules() if type(part).__name__ in kinds]
    inside = {id(p) for block in blocks for p in block.parameters()}
    largest = max((parameter_bytes(block.parameters(), dtype) for block in blocks), default=0)
    outside = parameter_bytes((p for p in model.parameters() if id(p) not in inside), dtype)
    return outside + 4 * largest


def parameter_bytes(parameters: Iterable[nn.Parameter], dtype: torch.dtype | None) -> int:
    """Bytes of parameters in a precision."""
    return sum(p.numel() * (p.element_size() if dtype is None else dtype.itemsize) for p in parameters)
