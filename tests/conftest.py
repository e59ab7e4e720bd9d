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


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers (`-n 2 --dist loadgroup`), a file's tests share one, and so do all that ask the servers."""
    for item in items:
        asks_servers = "rollout_servers" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("servers" if asks_servers else item.nodeid.split("::")[0]))


@pytest.fixture(scope="session")
def tiny_policy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Qwen2.5-VL with random weights, as small as works, in Hugging Face format."""
    from pixelthink.policies.tiny import FreshTinyQwen25VL
    from tests.tiny_models import TINY_SIZES, save_tiny

    return save_tiny(FreshTinyQwen25VL(**TINY_SIZES), tmp_path_factory.mktemp("tiny_policy"))


@pytest.fixture(scope="session")
def tiny_qwen3_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of Qwen3-VL, for images of 128 × 128 pixels."""
    from pixelthink.policies.tiny import FreshTinyQwen3VL
    from tests.tiny_models import TINY_SIZES, save_tiny

    return save_tiny(FreshTinyQwen3VL(**TINY_SIZES), tmp_path_factory.mktemp("tiny_qwen3"))
