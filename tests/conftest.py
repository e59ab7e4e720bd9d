"""Fixtures of all tests. Tests share the machine with others, so each process keeps to one thread, offline."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.servers import rollout_servers, running_servers  # noqa: F401  (fixtures)

if TYPE_CHECKING:
    from pixelthink.policies.tiny import FreshTinyQwen25VL

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers (`-n 2 --dist loadgroup`), a file's tests share one, and so do all that ask the servers."""
    for item in items:
        asks_servers = "rollout_servers" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("servers" if asks_servers else item.nodeid.split("::")[0]))


TINY_SIZES = {"hidden_size": 64, "layers": 2, "intermediate_size": 96, "vision_hidden_size": 32, "vision_layers": 2}


@pytest.fixture(scope="session")
def tiny_policy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Qwen2.5-VL with random weights, as small as works, in Hugging Face format."""
    from pixelthink.policies.tiny import FreshTinyQwen25VL

    return save_tiny(FreshTinyQwen25VL(**TINY_SIZES), tmp_path_factory.mktemp("tiny_policy"))


@pytest.fixture(scope="session")
def tiny_qwen3_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of Qwen3-VL, for images of 128 × 128 pixels."""
    from pixelthink.policies.tiny import FreshTinyQwen3VL

    return save_tiny(FreshTinyQwen3VL(**TINY_SIZES), tmp_path_factory.mktemp("tiny_qwen3"))


def save_tiny(backbone: FreshTinyQwen25VL, folder: Path) -> Path:
    """Writes a fresh policy to an existing folder and returns it."""
    backbone.setup()
    backbone.save(backbone.load_model(), folder)
    return folder
