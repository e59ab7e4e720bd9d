"""A vLLM that several runs use in turn: starting one takes seconds, and each run hands it weights of its own."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from torch import nn

from pixelthink.policies.base import PolicyBackbone
from pixelthink.rollouts.vllm import VLLMEngine


class SharedVLLM(VLLMEngine):
    """A VLLMEngine that takes over the vLLM of an earlier run with the same model configuration and adapter rank.

    Args:
        merge_adapter: As for `VLLMEngine`.
    """

    running: ClassVar[dict[tuple[str, int], VLLMEngine]] = {}

    def __init__(self, merge_adapter: bool = False) -> None:
        super().__init__(kv_cache_gib=0.25, max_model_len=512, enforce_eager=True, merge_adapter=merge_adapter)

    def setup(self, backbone: PolicyBackbone, model: nn.Module) -> None:
        self.backbone = backbone
        with TemporaryDirectory() as folder:
            backbone.describe_model(model, Path(folder))
            described = (Path(folder) / "config.json").read_text(encoding="utf-8")
        key = (described, backbone.adapter_rank if self.serves_adapters else 0)
        if (earlier := self.running.get(key)) is not None and earlier.llm is not None:
            self.llm, self.adapter = earlier.llm, earlier.adapter
            self.described, self.group = earlier.described, earlier.group
        super().setup(backbone, model)
        self.running[key] = self

    def close(self) -> None:
        """Leaves vLLM to the next run."""
