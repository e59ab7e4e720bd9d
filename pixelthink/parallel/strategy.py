"""Lightning's FSDP2 strategy with one dimension of processes, and checkpoints that any strategy resumes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.fabric.utilities.load import _METADATA_FILENAME
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint import CheckpointException, FileSystemReader
from torch.distributed.checkpoint import load as load_shards
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from pixelthink.errors import FileError, UserError
from pixelthink.files.checkpoints import replace_folder, write_failure
from pixelthink.parallel.sharding import Sharding, shard

FULL_STATE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class FSDP2(ModelParallelStrategy):
    """Shards weights, gradients and optimizer state over all processes (`fully_shard`); `strategy: fsdp2` for short.

    It is Lightning's `ModelParallelStrategy` with all processes in the data-parallel dimension. A checkpoint in one
    file has the form that one process or DDP writes, so that any strategy resumes it. A sharded checkpoint appears
    complete or not at all, and any number of processes resumes it.

    Args:
        sharding: How the models are sharded.
        save_distributed_checkpoint: Each process writes its shards into a folder. Otherwise the first process writes
            one file, and its main memory must hold all weights and the optimizer state.
        process_group_backend: As torch names it; None takes gloo on CPUs, nccl on GPUs, and both with `cpu_offload`.
        timeout: How long processes wait for each other.
    """

    def __init__(
        self,
        sharding: Sharding = Sharding(),
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta = default_pg_timeout,
    ) -> None:
        if process_group_backend is None and sharding.cpu_offload:
            process_group_backend = "cpu:gloo,cuda:nccl"
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.sharding = sharding

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Returns an optimizer's state; for one file, with the optimizer's own numbers of its parameters."""
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        assert self.model is not None
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = get_optimizer_state_dict(self.model, plain, options=FULL_STATE)
        return renamed(state, {name: n for n, name in enumerate(self._names(plain))}) if state else state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Saves a checkpoint. A sharded one is written beside its target, which it then replaces.

        Raises:
            FileError: it cannot be written; the old one is still there.
        """
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        target = Path(self.broadcast(filepath))
        scratch = target.with_name(f".{target.name}.tmp")
        if self.is_global_zero:
            shutil.rmtree(scratch, ignore_errors=True)
        self.barrier()
        try:
            super().save_checkpoint(checkpoint, scratch, storage_options)
        except CheckpointException as error:
            reason = write_failure(first_failure(error), target.parent)
            raise FileError(f"checkpoint {target} cannot be written: {reason}") from error
        self.barrier()
        if self.is_global_zero:
            replace_folder(target, scratch)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads weights and optimizer state of either kind of checkpoint, from any number of processes.

        Returns:
            The rest of the checkpoint, and under `state_dict` at least the names of its weights.

        Raises:
            UserError: a sharded checkpoint does not fit the models or optimizers of this run.
        """
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return self._load_shards(path, weights_only)
        assert self.model is not None
        assert self.lightning_module is not None
        checkpoint = self.checkpoint_io.load_checkpoint(path, weights_only=weights_only)
        strict = StateDictOptions(full_state_dict=True, strict=self.lightning_module.strict_loading)
        set_model_state_dict(self.model, dict(checkpoint["state_dict"]), options=strict)  # it adds what is missing
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=False):
            named = renamed(state, dict(enumerate(self._names(optimizer))))
            set_optimizer_state_dict(self.model, optimizer, named, options=StateDictOptions(full_state_dict=True))
        return checkpoint

    def _load_shards(self, path: Path, weights_only: bool | None) -> dict[str, Any]:
        """Loads a sharded checkpoint; weights that are not in it, such as a frozen reference, stay as they are."""
        assert self.model is not None
        saved = FileSystemReader(path).read_metadata().state_dict_metadata
        names = [name.removeprefix("state_dict.") for name in saved if name.startswith("state_dict.")]
        weights = {name: value for name, value in get_model_state_dict(self.model).items() if name in set(names)}
        try:
            load_shards({"state_dict": weights}, checkpoint_id=path)
            set_model_state_dict(self.model, weights, options=StateDictOptions(strict=False))
            for index, optimizer in enumerate(self.optimizers):
                state = {f"optimizer_{index}": get_optimizer_state_dict(self.model, optimizer)}
                load_shards(state, checkpoint_id=path)
                set_optimizer_state_dict(self.model, optimizer, state[f"optimizer_{index}"])
        except CheckpointException as error:
            reason = str(first_failure(error)).splitlines()[0]
            raise UserError(f"checkpoint {path} does not fit this run: {reason}") from error
        return {**torch.load(path / _METADATA_FILENAME, weights_only=weights_only), "state_dict": dict.fromkeys(names)}

    def _names(self, optimizer: Optimizer) -> list[str]:
        """Returns the names of an optimizer's parameters in its own order."""
        assert self.model is not None
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns an optimizer's state with other names for its parameters."""
    groups = [{**group, "params": [names[p] for p in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[p]: values for p, values in state["state"].items()}, "param_groups": groups}


def first_failure(error: CheckpointException) -> BaseException:
    """Returns the error of the first process that failed to read or write a sharded checkpoint."""
    return next(iter(error.failures.values()))[0]


def shard_for(strategy: Strategy, models: Sequence[nn.Module]) -> None:
    """Shards models if the strategy is `ModelParallelStrategy`, which leaves this to the module.

    Args:
        strategy: The trainer's.
        models: The module's children; those without parameters stay as they are.

    Raises:
        UserError: the strategy is old FSDP, or has a tensor-parallel dimension.
    """
    if isinstance(strategy, FSDPStrategy):
        raise UserError("trainer.strategy: fsdp is the old FSDP; this package shards with fsdp2")
    if not isinstance(strategy, ModelParallelStrategy):
        return
    mesh = strategy.device_mesh
    if mesh["tensor_parallel"].size() > 1:
        raise UserError(
            "trainer.strategy: ModelParallelStrategy needs tensor_parallel_size 1 and data_parallel_size the number of "
            "processes; strategy fsdp2 sets both"
        )
    sharding = strategy.sharding if isinstance(strategy, FSDP2) else Sharding()
    for model in models:
        if any(True for _ in model.parameters()):
            shard(model, sharding, mesh["data_parallel"])


StrategyRegistry.register("fsdp2", FSDP2, description="FSDP2 over all processes")
