"""A checkpoint that does not hold exactly the policy's weights is refused, though the reference's are not in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.training.grpo_module import GRPOModule


def test_only_the_reference_may_be_missing(tiny_policy_path: Path) -> None:
    module = GRPOModule(Qwen25VL(str(tiny_policy_path), dtype="float32"))
    module.configure_model()
    checkpoint = {"state_dict": dict(module.state_dict())}
    assert any(name.startswith("reference_model.") for name in checkpoint["state_dict"])
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)

    name, value = next(iter(checkpoint["state_dict"].items()))
    with pytest.raises(ValueError, match=f"lacks 1 weights, '{name}' first"):
        module.on_load_checkpoint({"state_dict": {k: v for k, v in checkpoint["state_dict"].items() if k != name}})
    with pytest.raises(ValueError, match=r"besides the policy's, 1 weights, 'policy\.more' first"):
        module.on_load_checkpoint({"state_dict": {**checkpoint["state_dict"], "policy.more": value}})
    with pytest.raises(ValueError, match="lacks"):
        module.on_load_checkpoint({"state_dict": {}})
