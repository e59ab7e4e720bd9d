"""What starting vLLM in the training process needs: its environment, the policy's weights, and room for an adapter."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from pixelthink.errors import MissingPackageError, UserError
from pixelthink.rollouts.vllm_requests import HOW_TO_INSTALL_VLLM

if TYPE_CHECKING:
    from pixelthink.policies.base import PolicyBackbone


def import_vllm() -> None:
    """Imports vLLM, with the environment variables that it reads then set unless the user has set them.

    vLLM's engine has to run in this process, since it is handed tensors in memory.

    Raises:
        MissingPackageError: vLLM is not installed. The message names both ways to install it.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(f"rollout: VLLMEngine needs vLLM: {HOW_TO_INSTALL_VLLM}") from error


def max_positions(folder: Path) -> int | None:
    """Returns the longest context of a model in tokens; None where its config.json scales or does not name it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    is_scaled = any("factor" in (text.get(key) or {}) for key in ("rope_scaling", "rope_parameters"))
    return None if is_scaled else text.get("max_position_embeddings")


def max_lora_rank(rank: int) -> int:
    """Returns the smallest `max_lora_rank` of vLLM that admits an adapter of this rank.

    Raises:
        UserError: vLLM serves no adapters of so high a rank.
    """
    from vllm.config.lora import MaxLoRARanks

    ranks = sorted(get_args(MaxLoRARanks))
    if rank > ranks[-1]:
        raise UserError(
            f"rollout: vLLM serves adapters up to rank {ranks[-1]}, not {rank}; set rollout.merge_adapter to true"
        )
    return next(allowed for allowed in ranks if allowed >= rank)


def policy_load_format(backbone: PolicyBackbone, model: nn.Module) -> str:
    """Registers and names a load format under which vLLM starts with the weights of a policy in memory.

    vLLM's own `dummy` format also overwrites constants that are in no checkpoint, such as the image normalisation of
    Qwen2.5-VL's vision tower. No sync brings those back.
    """
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    class PolicyLoader(BaseModelLoader):
        """Loads from the live policy."""

        def download_model(self, model_config: Any) -> None:
            pass

        def load_weights(self, vllm_model: Any, model_config: Any) -> None:
            vllm_model.load_weights(backbone.sync_weights(model))

    vllm_logger = logging.getLogger("vllm.model_executor.model_loader")
    level = vllm_logger.level
    vllm_logger.setLevel(logging.ERROR)  # it warns when the format of an earlier policy is replaced
    register_model_loader("pixelthink")(PolicyLoader)
    vllm_logger.setLevel(level)
    return "pixelthink"


@contextmanager
def isolated_start() -> Iterator[None]:
    """Undoes what starting vLLM does to this process: it draws random numbers and replaces `torch.set_num_threads`."""
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    with isolate_rng():
        try:
            yield
        finally:
            torch.set_num_threads = set_num_threads
            torch.set_num_threads(threads)
