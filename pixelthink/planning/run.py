"""A run as its config describes it, made without weights, data or devices."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch.optim import Optimizer

from pixelthink.cli.main import PixelThinkCLI
from pixelthink.cli.messages import instantiate
from pixelthink.data.datamodule import PromptData
from pixelthink.errors import UserError
from pixelthink.parallel.strategy import FSDP2
from pixelthink.rollouts.base import RolloutEngine
from pixelthink.training.grpo_module import GRPOModule

CHARACTERS_PER_TOKEN = 3.5
"""Of English instructions with coordinates; used to size a prompt without its model's tokenizer."""
QUESTION = "the person in the red jacket who stands left of the two others"
CHAT_TOKENS = 30
"""System message, roles and markers around a prompt, about."""


class _Described(PixelThinkCLI):
    """Makes model and data; of the trainer only its settings."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return None


@dataclass(frozen=True)
class Run:
    """What a memory plan has to know of a run.

    Attributes:
        module: The module, without weights.
        engine: Its rollout engine.
        data: The data module; no file of it is opened.
        settings: The trainer's arguments.
        gpus: Processes, one a GPU.
    """

    module: GRPOModule
    engine: RolloutEngine
    data: PromptData
    settings: Any
    gpus: int

    @staticmethod
    def of(arguments: Sequence[str], gpus: int) -> Run:
        """Parses a command line as `python -m pixelthink fit` does.

        Args:
            arguments: `--config …` and overrides.
            gpus: Processes to plan for, whatever the config says.

        Raises:
            UserError: the run does not train with `GRPOModule`, or its batch does not divide among the processes.
        """
        cli = _Described(args=list(arguments), run=False)
        if not isinstance(cli.model, GRPOModule):
            raise UserError(f"memory plans are made of GRPOModule's runs, not of {type(cli.model).__name__}'s")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(RolloutEngine, "rollout")
        rollout = cli.config.as_dict()["model"]["init_args"]["rollout"]
        engine = instantiate(parser, parser.parse_object({"rollout": rollout})).rollout
        run = Run(cli.model, engine, cli.datamodule, cli.config_init["trainer"], gpus)
        if run.data.batch_size % gpus:
            raise UserError(f"data.batch_size: {run.data.batch_size} prompts do not divide among {gpus} GPUs")
        return run

    @property
    def on_gpu(self) -> bool:
        """Whether it is meant for GPUs."""
        return self.settings["accelerator"] != "cpu"

    @property
    def prompts(self) -> int:
        """Prompts of one process in a step."""
        return self.data.batch_size // self.gpus

    @property
    def text_tokens(self) -> int:
        """Tokens of a prompt besides its image's, estimated from the number of characters."""
        text = self.data.prompt.text(QUESTION)
        return CHAT_TOKENS + round(len(text) / CHARACTERS_PER_TOKEN)

    @property
    def optimizer_class(self) -> type[Optimizer]:
        """Class of the optimizer."""
        return type(self._optimizer())

    def optimizer_option(self, name: str) -> Any:
        """A default of the optimizer; None where it has no such option."""
        return self._optimizer().defaults.get(name)

    def _optimizer(self) -> Optimizer:
        return self.module.learner.optimizer([torch.nn.Parameter(torch.zeros(1))])

    @property
    def sharded(self) -> bool:
        """Whether the processes share weights, gradients and optimizer states (FSDP)."""
        strategy = self.settings["strategy"]
        by_name = isinstance(strategy, str) and strategy.startswith(("fsdp", "model_parallel"))
        return self.gpus > 1 and (by_name or isinstance(strategy, FSDPStrategy | ModelParallelStrategy))

    @property
    def buckets(self) -> bool:
        """Whether DDP holds a second copy of the gradients to send them."""
        strategy = self.settings["strategy"]
        view = isinstance(strategy, DDPStrategy) and strategy._ddp_kwargs.get("gradient_as_bucket_view", False)
        return self.gpus > 1 and not self.sharded and not view

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """What autocast computes in; None where there is no autocast."""
        return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(self.settings["precision"]))

    @property
    def gathered_dtype(self) -> torch.dtype | None:
        """What sharded weights are gathered in; None for their own precision."""
        strategy = self.settings["strategy"]
        name = strategy.sharding.param_dtype if isinstance(strategy, FSDP2) else None
        return None if name is None else getattr(torch, name)

    @property
    def true_dtype(self) -> torch.dtype | None:
        """What the precision converts all weights to; None where it leaves them as they are."""
        return {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(str(self.settings["precision"]))

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which Lightning's mixed precision takes a step; like there, casts are not cached."""
        dtype = self.compute_dtype or self.gathered_dtype  # FSDP casts what it gathers, and with it the activations
        return nullcontext() if dtype is None else torch.autocast("cpu", dtype, cache_enabled=False)
