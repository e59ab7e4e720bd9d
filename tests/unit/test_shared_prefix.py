"""Packed groups give the numbers and the gradients of padded rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from pixelthink.policies.base import EncodedPrompt, TokenScores
from pixelthink.policies.qwen_vl import Qwen25VL
from pixelthink.policies.shared_prefix import pack_groups, sees
from tests.tiny_models import FAMILIES, gradients, random_prompt, random_tokens, relative_difference, tiny_model

GRIDS = [[(4, 6)], [(8, 4), (4, 4)], [(4, 4)], [], [(2, 2), (6, 4), (2, 8)]]
Case = tuple[list[EncodedPrompt], list[Tensor], list[int]]


def random_case(seed: int, text_only: bool = True) -> Case:
    """Prompts with 0 to 3 images; groups of random sizes in random order; lengths 0 and 1 among the completions."""
    generator = torch.Generator().manual_seed(seed)
    grids = GRIDS if text_only else [g for g in GRIDS if g]
    prompts = [random_prompt(g, generator) for g in grids]
    sizes = torch.randint(0, 5, (len(prompts),), generator=generator).tolist()
    index = [p for p, size in enumerate(sizes) for _ in range(size)] + [0, 0, 0]
    index = [index[i] for i in torch.randperm(len(index), generator=generator).tolist()]
    lengths = [0, 1, *torch.randint(0, 12, (len(index) - 2,), generator=generator).tolist()]
    return prompts, [random_tokens(length, generator) for length in lengths], index


def loss_of(scores: TokenScores) -> Tensor:
    """A scalar whose gradient differs from token to token."""
    weights = torch.linspace(-1, 1.5, scores.logprobs.numel()).view_as(scores.logprobs)
    loss = (scores.logprobs * weights).sum()
    return loss if scores.entropy is None else loss + 0.3 * (scores.entropy * weights.flip(0)).sum()


def both(backbone: Qwen25VL, model: torch.nn.Module, case: Case) -> tuple[TokenScores, TokenScores, float]:
    """Scores of the shared and of the padded computation, and how far their gradients differ."""
    results = []
    for backbone.logprobs in ("shared_prefix", "padded"):
        scores = backbone.score(model, *case, with_entropy=True)
        loss_of(scores).backward()
        results.append((scores, gradients(model)))
    (shared, found), (padded, expected) = results
    return shared, padded, relative_difference(found, expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_padded_rows_in_value_and_gradient(family: str, seed: int) -> None:
    backbone, model = tiny_model(family, seed)
    shared, padded, difference = both(backbone, model, random_case(seed))
    torch.testing.assert_close(shared.logprobs, padded.logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(shared.entropy, padded.entropy, rtol=0, atol=1e-5)
    assert difference < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{"freeze_vision_tower": True}, {"gradient_checkpointing": True}], ids=str)
def test_with_frozen_tower_and_with_checkpointing(family: str, options: dict) -> None:
    backbone, model = tiny_model(family, **options)
    case = random_case(5, text_only=False)
    shared, padded, difference = both(backbone, model, case)
    torch.testing.assert_close(shared.logprobs, padded.logprobs, rtol=0, atol=1e-5)
    assert difference < 1e-4

    plain, reference = tiny_model(family)
    expected = plain.score(reference, *case, with_entropy=True)
    loss_of(expected).backward()
    loss_of(backbone.score(model, *case, with_entropy=True)).backward()
    found = gradients(model)
    assert any(name.startswith("model.visual") for name in found) == (not backbone.freeze_vision_tower)
    assert relative_difference(found, {n: g for n, g in gradients(reference).items() if n in found}) < 1e-4


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_mask_is_heeded_by_the_models_own_kernels(family: str, kernel: str) -> None:
    backbone, model = tiny_model(family)
    model.model.language_model.config._attn_implementation = kernel
    shared, padded, difference = both(backbone, model, random_case(7))
    torch.testing.assert_close(shared.logprobs, padded.logprobs, rtol=0, atol=1e-5)
    assert difference < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_without_segments_still_heed_their_padding(family: str) -> None:
    """transformers drops the masks of a kernel whose mask function is not registered, without a word."""
    _, model = tiny_model(family)
    generator = torch.Generator().manual_seed(0)
    tokens = random_tokens(6, generator)[None]
    with torch.no_grad():
        expected = model(input_ids=tokens, position_ids=torch.arange(6).expand(3, 1, -1)).logits
        padded = model(
            input_ids=torch.cat([random_tokens(3, generator)[None], tokens], dim=1),
            attention_mask=torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]]),
            position_ids=torch.tensor([0, 0, 0, 0, 1, 2, 3, 4, 5]).expand(3, 1, -1),
        ).logits
    torch.testing.assert_close(padded[:, 3:], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_completions_are_blind_to_each_other_and_see_their_prompt(family: str) -> None:
    backbone, model = tiny_model(family)
    generator = torch.Generator().manual_seed(0)
    prompts = [random_prompt([(4, 4)], generator) for _ in range(2)]
    completions = [random_tokens(6, generator) for _ in range(4)]
    index = [0, 0, 1, 1]
    with torch.no_grad():
        before = backbone.score(model, prompts, completions, index).logprobs
        after = backbone.score(model, prompts, [completions[0], random_tokens(6, generator), *completions[2:]], index)
        moved = backbone.score(model, [random_prompt([(4, 4)], generator), prompts[1]], completions, index)
    torch.testing.assert_close(after.logprobs[[0, 2, 3]], before[[0, 2, 3]], rtol=0, atol=1e-5)
    assert (after.logprobs[1] - before[1]).abs().max() > 0.1
    assert (moved.logprobs[:2] - before[:2]).abs().min() > 1e-4
    torch.testing.assert_close(moved.logprobs[2:], before[2:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_as_close_to_float32_as_padded_rows_are(family: str) -> None:
    """The bound: the largest error over tokens is at most twice that of padded rows in the same precision."""
    case = random_case(3)
    backbone, model = tiny_model(family)
    exact = backbone.score(model, *case).logprobs.detach()
    errors = {}
    for backbone.logprobs in ("shared_prefix", "padded"):
        with torch.no_grad():
            low = backbone.score(model.bfloat16(), *case).logprobs
        assert low.dtype == torch.float32
        errors[backbone.logprobs] = float((low - exact).abs().max())
    assert errors["shared_prefix"] <= 2 * errors["padded"]


def test_autocast_trains_float32_weights_in_bfloat16() -> None:
    backbone, model = tiny_model("qwen2.5", gradient_checkpointing=True)
    case = random_case(4)
    exact = backbone.score(model, *case).logprobs.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = backbone.score(model, *case, with_entropy=True)
        loss_of(scores).backward()
    assert scores.logprobs.dtype == torch.float32
    assert 0 < (scores.logprobs - exact).abs().max() < 0.2
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients(model).values())


def test_only_empty_completions() -> None:
    backbone, model = tiny_model("qwen2.5")
    prompts, _, _ = random_case(0)
    scores = backbone.score(model, prompts, [torch.zeros(0, dtype=torch.int64)] * 2, [0, 1], with_entropy=True)
    assert scores.logprobs.shape == (2, 0)


def test_shared_images_change_nothing_and_a_trained_tower_shares_none() -> None:
    case = random_case(6)
    trained, model = tiny_model("qwen3")
    assert all(p.features is None for p in trained.share_images(model, case[0]))
    backbone, model = tiny_model("qwen3", freeze_vision_tower=True)
    prompts = backbone.share_images(model, case[0])
    expected = backbone.score(model, *case).logprobs
    for parameter in model.model.visual.parameters():
        parameter.data.zero_()  # proves that the tower is not run again
    torch.testing.assert_close(backbone.score(model, prompts, *case[1:]).logprobs, expected, rtol=0, atol=1e-6)


def test_flex_attention_is_given_the_same_rule() -> None:
    generator = torch.Generator().manual_seed(1)
    prompts = [(random_tokens(n, generator), torch.arange(n).expand(3, -1)) for n in (4, 7)]
    packed = pack_groups(prompts, [random_tokens(n, generator) for n in (3, 0, 2, 5)], [1, 0, 1, 0])

    def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(query, key, packed.group, packed.part)

    length = len(packed.group)
    assert torch.equal(create_mask(rule, 1, 1, length, length, device="cpu")[0, 0], packed.visible())


def test_what_cannot_be_done_is_said_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"flash_attention_2.*padded$"):
        Qwen25VL(attn_implementation="flash_attention_2")
    backbone, model = tiny_model("qwen2.5")
    model.model.language_model.config.layer_types[0] = "sliding_attention"
    with pytest.raises(ValueError, match="sliding-window"):
        backbone.score(model, *random_case(0))
    model.model.language_model.config.layer_types[0] = "full_attention"
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="takes no masks"):
        backbone.score(model, *random_case(0))
