"""The dimensions in the table are those of the published models."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixelthink.planning.shapes import PUBLISHED, model_without_weights, shape_of
from pixelthink.planning.tracking import ShapesOnly
from pixelthink.policies.qwen3_vl import Qwen3VL
from pixelthink.policies.qwen_vl import Qwen25VL

BILLIONS = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.75,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.29,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33.45,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73.41,
    "Qwen/Qwen3-VL-2B-Instruct": 2.13,
    "Qwen/Qwen3-VL-4B-Instruct": 4.44,
    "Qwen/Qwen3-VL-8B-Instruct": 8.77,
    "Qwen/Qwen3-VL-32B-Instruct": 33.36,
}
"""Parameters that the models' pages on the hub state, tied heads counted once."""


def test_every_model_is_compared() -> None:
    assert PUBLISHED.keys() == BILLIONS.keys()


@pytest.mark.parametrize("name", BILLIONS)
def test_number_of_parameters(name: str) -> None:
    family = Qwen3VL if "Qwen3" in name else Qwen25VL
    with ShapesOnly():
        model = model_without_weights(family(name))
    found = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert found == pytest.approx(BILLIONS[name], abs=0.01)


def test_a_folder_s_own_config_is_read(tiny_policy_path: Path) -> None:
    with ShapesOnly():
        model = model_without_weights(Qwen25VL(str(tiny_policy_path), dtype="float32"))
    assert model.config.text_config.hidden_size == 64


def test_other_names_of_a_size_have_its_dimensions() -> None:
    assert shape_of("Qwen/Qwen3-VL-4B-Thinking").text_config.hidden_size == 2560


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^policy.path: 'me/mine' is no folder .* known of: Qwen/Qwen2.5-VL-3B"):
        shape_of("me/mine")
