"""Adapters and quantised weights: what they change, and that everything else computes the same with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelthink.errors import FileError, UserError
from pixelthink.policies.adapters import LoRA, adapter_off, base_weights, is_adapter_weight
from pixelthink.policies.base import EncodedPrompt
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.policies.reference import AdapterOff, FrozenCopy, QuantizedCopy
from tests.tiny_models import gradients, relative_difference

Case = tuple[list[EncodedPrompt], list[Tensor], list[int]]
KINDS = ("none", "nf4")
"""Quantisations whose numbers do not depend on what is computed together."""


def load(path: Path, **options: Any) -> tuple[Qwen25VL, Any]:
    """A policy with an adapter that already does something, B being no longer 0."""
    options = {"adapter": LoRA(rank=4, alpha=8), "dtype": "float32", **options}
    backbone = Qwen25VL(str(path), **options)
    backbone.setup()
    model: Any = backbone.load_model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.data.normal_(std=0.2)
    return backbone, model


@pytest.fixture(scope="module")
def case(tiny_policy_path: Path) -> Case:
    """Two prompts with an image each, four completions."""
    generator = torch.Generator().manual_seed(0)
    backbone = Qwen25VL(str(tiny_policy_path), dtype="float32")
    backbone.setup()
    image_token = backbone.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    prompts = []
    for length in (3, 6):
        text = torch.randint(10, 200, (length,), generator=generator)
        ids = torch.cat([text, torch.full((4,), image_token), text])
        prompts.append(EncodedPrompt(ids, torch.randn(16, 1176, generator=generator), torch.tensor([[1, 4, 4]])))
    completions = [torch.randint(10, 200, (n,), generator=generator) for n in (5, 2, 7, 4)]
    return prompts, completions, [0, 0, 1, 1]


def score(backbone: Qwen25VL, model: Any, case: Case) -> Tensor:
    with torch.no_grad():
        return backbone.score(model, *case).logprobs


@pytest.mark.parametrize("quantization", KINDS)
def test_shared_prefix_equals_padded_rows(quantization: Any, tiny_policy_path: Path, case: Case) -> None:
    found = {}
    for logprobs in ("padded", "shared_prefix"):
        for checkpointing in (False, True):
            options: Any = {"logprobs": logprobs, "gradient_checkpointing": checkpointing, "quantization": quantization}
            backbone, model = load(tiny_policy_path, **options)
            scores = backbone.score(model, *case)
            scores.logprobs.sum().backward()
            found[logprobs, checkpointing] = scores.logprobs.detach(), gradients(model)
    expected_logprobs, expected_gradients = found["padded", False]
    assert expected_gradients
    assert all(is_adapter_weight(name) for name in expected_gradients)
    for logprobs, grads in found.values():
        torch.testing.assert_close(logprobs, expected_logprobs, rtol=0, atol=1e-5)
        assert relative_difference(grads, expected_gradients) < 1e-4


@pytest.mark.parametrize("quantization", KINDS)
def test_a_model_computes_the_same_in_training_and_evaluation(
    quantization: Any, tiny_policy_path: Path, case: Case
) -> None:
    backbone, model = load(tiny_policy_path, quantization=quantization)
    in_training = backbone.score(model.train(), *case).logprobs.detach()
    torch.testing.assert_close(score(backbone, model.eval(), case), in_training, rtol=0, atol=1e-5)


@pytest.mark.parametrize("quantization", KINDS)
def test_merged_weights_give_the_same_model(quantization: Any, tiny_policy_path: Path, case: Case) -> None:
    backbone, model = load(tiny_policy_path, quantization=quantization)
    plain, merged = (lambda b: (b, b.load_model()))(Qwen25VL(str(tiny_policy_path), dtype="float32"))
    before = score(plain, merged, case)
    missing, unexpected = merged.load_state_dict(dict(backbone.sync_weights(model)), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied to the embeddings
    torch.testing.assert_close(score(plain, merged, case), score(backbone, model, case), rtol=0, atol=1e-5)
    assert (score(plain, merged, case) - before).abs().max() > 0.1


@pytest.mark.parametrize("quantization", KINDS)
def test_without_its_adapter_a_model_is_its_base(quantization: Any, tiny_policy_path: Path, case: Case) -> None:
    backbone, model = load(tiny_policy_path, quantization=quantization)
    base = Qwen25VL(str(tiny_policy_path), dtype="float32", quantization=quantization)
    expected = score(base, base.load_model(), case)
    assert (score(backbone, model, case) - expected).abs().max() > 0.1
    with adapter_off(model):
        assert torch.equal(score(backbone, model, case), expected)
    assert all(p.requires_grad == is_adapter_weight(n) for n, p in model.named_parameters())
    unmerged = dict(base_weights(model, merged=False))
    if quantization == "none":
        start = dict(base.load_model().named_parameters())
        assert unmerged.keys() == start.keys()
        assert all(torch.equal(unmerged[name], start[name]) for name in start)


def test_the_language_model_alone_is_adapted_and_quantised(tiny_policy_path: Path) -> None:
    _, model = load(tiny_policy_path, quantization="nf4", adapter=LoRA(rank=2, target_modules=("q_proj", "down_proj")))
    adapted = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    layers = ("self_attn.q_proj", "mlp.down_proj")
    assert adapted == {f"model.language_model.layers.{i}.{layer}" for i in range(2) for layer in layers}
    four_bits = {n for n, m in model.named_modules() if type(m).__name__ == "Linear4bit" and ".base_layer" not in n}
    assert four_bits
    assert all(name.startswith("model.language_model.layers.") for name in four_bits)


def test_an_adapter_is_a_function_of_the_seed(tiny_policy_path: Path) -> None:
    def adapter(seed: int, drawn: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        torch.rand(drawn)  # whatever was drawn before
        backbone = Qwen25VL(str(tiny_policy_path), dtype="bfloat16", adapter=LoRA(rank=2))
        state = torch.random.get_rng_state()
        weights = {n: p for n, p in backbone.load_model().named_parameters() if is_adapter_weight(n)}
        assert torch.equal(torch.random.get_rng_state(), state)
        return weights

    with torch.random.fork_rng(devices=[]):
        first, again, other = adapter(3, 0), adapter(3, 7), adapter(4, 0)
    assert all(weight.dtype == torch.float32 for weight in first.values())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], other[name]) != (".lora_A." in name) for name in first)
    assert all(weight.any() == (".lora_A." in name) for name, weight in first.items())


@pytest.mark.parametrize("quantization", KINDS)
def test_references_are_the_start_whatever_is_trained(quantization: Any, tiny_policy_path: Path, case: Case) -> None:
    backbone = Qwen25VL(str(tiny_policy_path), dtype="float32", adapter=LoRA(rank=4), quantization=quantization)
    model: Any = backbone.load_model()
    start = score(backbone, model, case)
    references = [AdapterOff(), FrozenCopy(), FrozenCopy(offload=True)]
    placed = [reference.build(backbone, model) for reference in references]
    assert [module is not None for module in placed] == [False, True, False]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        backbone.score(model, *case).logprobs.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (score(backbone, model, case) - start).abs().max() > 0.1
    for reference in references:
        with reference.weights(model) as frozen:
            assert torch.equal(score(backbone, frozen, case), start)


@pytest.mark.parametrize(("bits", "layer", "error"), [(4, "Linear4bit", 0.5), (8, "Linear8bitLt", 0.2)])
def test_a_quantised_copy_is_near_the_start(bits: Any, layer: str, error: float, tiny_policy_path, case) -> None:
    backbone = Qwen25VL(str(tiny_policy_path), dtype="float32")
    model = backbone.load_model()
    reference = QuantizedCopy(bits)
    copy: Any = reference.build(backbone, model)
    assert type(copy.model.language_model.layers[0].mlp.up_proj).__name__ == layer
    with reference.weights(model) as frozen:
        difference = (score(backbone, frozen, case) - score(backbone, model, case)).abs().max()
    assert 0 < difference < error


def test_a_copy_in_bfloat16_rounds_the_weights_and_nothing_else(tiny_policy_path: Path, case: Case) -> None:
    backbone = Qwen25VL(str(tiny_policy_path), dtype="float32")
    model = backbone.load_model()
    reference = FrozenCopy(dtype="bfloat16")
    copy: Any = reference.build(backbone, model)
    assert {p.dtype for p in copy.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in copy.named_buffers())
    with reference.weights(model) as frozen:
        difference = (score(backbone, frozen, case) - score(backbone, model, case)).abs().max()
    assert 0 < difference < 0.1


def test_an_exported_adapter_can_be_continued(tiny_policy_path: Path, tmp_path: Path, case: Case) -> None:
    backbone, model = load(tiny_policy_path)
    backbone.save(model, tmp_path, "adapter")
    again = Qwen25VL(str(tiny_policy_path), dtype="float32", adapter=LoRA(rank=4, alpha=8, init_from=str(tmp_path)))
    assert torch.equal(score(again, again.load_model(), case), score(backbone, model, case))
    for wrong, message in (
        (LoRA(rank=8, alpha=8, init_from=str(tmp_path)), "has rank 4 and alpha 8"),
        (LoRA(rank=4, alpha=8, target_modules=("q_proj",), init_from=str(tmp_path)), "of its weights do not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            Qwen25VL(str(tiny_policy_path), adapter=wrong).load_model()
    with pytest.raises(FileNotFoundError, match=f"no adapter in '{tiny_policy_path}'"):
        Qwen25VL(str(tiny_policy_path), adapter=LoRA(init_from=str(tiny_policy_path))).load_model()
    with pytest.raises(FileNotFoundError, match=r"set policy\.path to its base '.*tiny_policy0'"):
        Qwen25VL(str(tmp_path)).setup()


@pytest.mark.parametrize("damaged", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_one_line(tiny_policy_path: Path, tmp_path: Path, damaged: str) -> None:
    backbone, model = load(tiny_policy_path)
    backbone.save(model, tmp_path, "adapter")
    (tmp_path / damaged).write_bytes((tmp_path / damaged).read_bytes()[:20])
    with pytest.raises(FileError, match=r"policy\.adapter\.init_from: the adapter in .* is damaged \(") as caught:
        Qwen25VL(str(tiny_policy_path), adapter=LoRA(rank=4, alpha=8, init_from=str(tmp_path))).load_model()
    assert "\n" not in str(caught.value)


def test_options_that_the_model_cannot_take_are_one_line(tiny_policy_path: Path) -> None:
    with pytest.raises(UserError, match=r"policy: cannot load .*nonesuch") as caught:
        Qwen25VL(str(tiny_policy_path), attn_implementation="nonesuch", logprobs="padded").load_model()
    assert "\n" not in str(caught.value)


def test_bad_adapters_are_refused(tiny_policy_path: Path) -> None:
    with pytest.raises(ValueError, match="no linear layer 'qkv'; it has down_proj, gate_proj"):
        Qwen25VL(str(tiny_policy_path), adapter=LoRA(target_modules=("q_proj", "qkv"))).load_model()
    with pytest.raises(ValueError, match="rank must be at least 1"):
        LoRA(rank=0)
    backbone = Qwen25VL(str(tiny_policy_path))
    with pytest.raises(ValueError, match="AdapterOff needs a policy with an adapter"):
        AdapterOff().build(backbone, backbone.load_model())
