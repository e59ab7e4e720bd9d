"""Replaces the weights inside vLLM's workers, in the training process or on a server.

Servers are started with `--worker-extension-cls pixelthink.rollouts.vllm_worker.PolicyWeights`. They take weights by
the remote call `take_weights` in place of vLLM's own `reload_weights`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


class PolicyWeights:
    """Mixed into vLLM's worker class, which has `reload_weights` and `get_model`."""

    def take_weights(
        self, weights_iterator: Iterable[tuple[str, Tensor]] | None = None, weights_path: str | None = None
    ) -> None:
        """Replaces all weights.

        A CPU build of vLLM 0.32 keeps a packed copy of the output head. Where the head is tied to the embedding,
        vLLM's own `reload_weights` leaves the copy of the old weights: log-probabilities are off by 0.8 when the
        embedding changed by a tenth, and vLLM logs "ParallelLMHead: Failed to load weights". So it is packed again.

        Args:
            weights_iterator: (name, unsharded tensor) of every weight; only within one process.
            weights_path: Folder with safetensors files in place of an iterator.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.platforms import current_platform

        worker: Any = self
        worker.reload_weights(weights_iterator=weights_iterator, weights_path=weights_path)
        if current_platform.is_cpu():  # elsewhere head and embedding share their memory
            for module in worker.get_model().modules():
                if isinstance(module, ParallelLMHead):
                    module.quant_method.process_weights_after_loading(module)
