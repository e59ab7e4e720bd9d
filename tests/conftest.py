"""Fixtures of all tests. Tests share the machine with others, so each process keeps to one thread, offline."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch

from tests.servers import rollout_servers, running_servers  # noqa: F401  (fixtures)

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_policy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Qwen2.5-VL with random weights, as small as works, in Hugging Face format."""
    from pixelthink.policies.tiny import FreshTinyQwen25VL

    backbone = FreshTinyQwen25VL(
        hidden_size=64, layers=2, heads=4, intermediate_size=96, vision_hidden_size=32, vision_layers=2
    )
    backbone.setup()
    folder = tmp_path_factory.mktemp("tiny_policy")
    backbone.load_model().save_pretrained(folder)
    backbone.processor.save_pretrained(folder)
    return folder
