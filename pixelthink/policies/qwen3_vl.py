"""Qwen3-VL policies."""

from __future__ import annotations

from typing import Any

from pixelthink.policies.qwen_vl import Qwen25VL


class Qwen3VL(Qwen25VL):
    """Qwen3-VL from a local folder or a hub id.

    It is loaded, packed and sampled as Qwen2.5-VL is; it writes coordinates in thousandths of the image's sides.

    Args:
        path: Folder in Hugging Face format, or a hub id.
        kwargs: As for `Qwen25VL`.
    """

    model_type = "qwen3_vl"
    convention = "per_mille"

    def __init__(self, path: str = "Qwen/Qwen3-VL-4B-Instruct", **kwargs: Any) -> None:
        super().__init__(path, **kwargs)
