"""One padded row per completion: the reference for `pixelthink.policies.shared_prefix` and its fallback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pixelthink.policies.base import EncodedPrompt
from pixelthink.policies.vision import image_inputs, prompt_positions, vision_features


def padded_rows(
    core: Any, prompts: Sequence[EncodedPrompt], completions: Sequence[Tensor], prompt_index: Sequence[int]
) -> dict[str, Any]:
    """Right-padded rows `[prompt | completion]` as arguments of a transformers forward.

    Args:
        core: A Qwen-VL model without its head.
        prompts: P prompts; each image goes through the vision tower once.
        completions: N token id vectors (length,); may be empty.
        prompt_index: Which prompt each completion follows.

    Returns:
        `input_ids` and `attention_mask`, int64 (N, L); `position_ids`, int64 (3, N, L); the images.
    """
    device = next(core.parameters()).device
    used = sorted(set(prompt_index))
    features = dict(zip(used, vision_features(core, [prompts[p] for p in used]), strict=True))
    positions = {p: prompt_positions(core, prompts[p]) for p in used}
    rows, places = [], []
    for p, completion in zip(prompt_index, completions, strict=True):
        rows.append(torch.cat([prompts[p].token_ids, completion.cpu()]))
        following = positions[p].max() + 1 + torch.arange(len(completion))
        places.append(torch.cat([positions[p], following.expand(3, -1)], dim=1).T)
    lengths = torch.tensor([len(row) for row in rows])
    token_ids = pad_sequence(rows, batch_first=True)
    return {
        "input_ids": token_ids.to(device),
        "attention_mask": (torch.arange(token_ids.shape[1]) < lengths[:, None]).long().to(device),
        "position_ids": pad_sequence(places, batch_first=True).permute(2, 0, 1).to(device),
        **image_inputs([features[p] for p in prompt_index]),
    }


def padded_hidden(
    core: Any, prompts: Sequence[EncodedPrompt], completions: Sequence[Tensor], prompt_index: Sequence[int]
) -> Tensor:
    """Hidden states that predict each completion token, (sum of completion lengths, D); arguments as `padded_rows`."""
    hidden = core(**padded_rows(core, prompts, completions, prompt_index), use_cache=False).last_hidden_state
    states = []
    for row, p, completion in zip(hidden, prompt_index, completions, strict=True):
        last = len(prompts[p].token_ids) - 1
        states.append(row[last : last + len(completion)])
    return torch.cat(states)
