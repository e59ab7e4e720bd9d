"""What runs inside vLLM's workers, in this process or on a server: taking new weights, the whole of them.

A server is started with `--worker-extension-cls pixelthink.rollouts.vllm_worker.PolicyWeights`, and takes weights by
the remote call `take_weights` instead of `reload_weights`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


class PolicyWeights:
    """Mixed into vLLM's worker class, whose `reload_weights` and `get_model` it calls."""

    def take_weights(
        self, weights_iterator: Iterable[tuple[str, Tensor]] | None = None, weights_path: str | None = None
    ) -> None:
        """Replaces all weights.

        vLLM 0.32's own `reload_weights` forgets one place: a CPU build keeps a packed copy of the output head, and
        where the head is tied to the embedding, the copy stays that of the old weights (log-probabilities off by 0.8
        when the embedding changed by a tenth; vLLM logs "ParallelLMHead: Failed to load weights").

        Args:
            weights_iterator: (name, whole tensor) of every weight; only within one process.
            weights_path: Folder of safetensors in place of an iterator.
        """
        worker: Any = self
        worker.reload_weights(weights_iterator=weights_iterator, weights_path=weights_path)
        pack_tied_heads(worker.get_model())


def pack_tied_heads(model: nn.Module) -> None:
    """Packs the weights of output heads anew on a CPU; elsewhere head and embedding share their memory."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
