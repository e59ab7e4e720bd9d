"""Requests to vLLM, in this process or on a server, and the completions that its answers become.

An image prompt is sent as chat-templated text with one *unexpanded* placeholder per image, and the image beside it.
vLLM expands the placeholder; it would expand an expanded prompt a second time. Log-probabilities come back in vLLM's
`raw_logprobs` mode, i.e. at temperature 1 before any token is forbidden, as `Completion.logprobs` needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from pixelthink.errors import UserError
from pixelthink.rollouts.base import SamplingConfig
from pixelthink.rollouts.completions import make_completion
from pixelthink.types import Completion, Prompt, Timings

if TYPE_CHECKING:
    from PIL import Image

    from pixelthink.policies.base import PolicyBackbone

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
FORBIDDEN_BIAS = -100.0
"""Added to the logit of a token that may not be sampled; the lowest value that the OpenAI protocol allows."""
HOW_TO_INSTALL_VLLM = "pip install 'pixelthink[vllm]' with a GPU, make vllm for the CPU build"


@dataclass(frozen=True)
class ImagePrompt:
    """One request's prompt.

    Attributes:
        text: Chat-templated, with one unexpanded placeholder per image.
        token_ids: The same, tokenised; still unexpanded.
        images: The pictures, in order.
    """

    text: str
    token_ids: tuple[int, ...]
    images: tuple[Image.Image, ...]


def image_prompt(backbone: PolicyBackbone, prompt: Prompt) -> ImagePrompt:
    """Returns what vLLM is sent of a prompt; without the image where the messages have no image entry."""
    text = backbone.prompt_text(prompt)
    contents = [message["content"] for message in prompt.messages]
    has_image = any(part["type"] == "image" for parts in contents if not isinstance(parts, str) for part in parts)
    images = (prompt.image,) if has_image else ()
    return ImagePrompt(text, tuple(backbone.processor.tokenizer(text)["input_ids"]), images)


def engine_dtype(requested: Dtype, model: nn.Module) -> str:
    """Returns the name of an engine's precision, e.g. "bfloat16"; `auto` is that of the policy `model`."""
    if requested != "auto":
        return requested
    return str(next(p.dtype for p in model.parameters() if p.is_floating_point())).removeprefix("torch.")


def check_length(sample: str, prompt_tokens: int, max_new_tokens: int, limit: int, option: str) -> None:
    """Raises `UserError` if a prompt and its completion exceed `limit` tokens; vLLM would cut the completion silently.

    The message names the id of the sample and the option that sets the limit.
    """
    if prompt_tokens + max_new_tokens > limit:
        raise UserError(
            f"sample {sample!r}: a prompt of {prompt_tokens} tokens and max_new_tokens {max_new_tokens} do not fit "
            f"into {option} {limit}"
        )


def request_seeds(seed: int, places: Sequence[int]) -> list[int]:
    """Returns one seed per request, below 2**62. vLLM adds a completion's number in its group to it.

    A seed depends on that of the rollout and on the prompt's place in the step's batch over all processes.
    """
    generator = torch.Generator().manual_seed(seed)
    table = torch.randint(2**62, (max(places) + 1,), generator=generator).tolist()
    return [table[place] for place in places]


def sampling_options(backbone: PolicyBackbone, sampling: SamplingConfig, seed: int) -> dict[str, Any]:
    """Returns the keyword arguments of `vllm.SamplingParams` for one prompt; servers take the same names.

    A completion ends at the policy's stop tokens only: `ignore_eos` skips those of the checkpoint's generation config.
    Image and video placeholders get a bias that keeps them from being sampled.
    """
    return {
        "n": sampling.group_size,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty or 1.0,
        "max_tokens": sampling.max_new_tokens,
        "seed": seed,
        "logprobs": sampling.uncertainty_top_k,
        "logit_bias": dict.fromkeys(backbone.forbidden_token_ids, FORBIDDEN_BIAS),
        "stop_token_ids": list(backbone.stop_token_ids),
        "ignore_eos": True,
    }


def shares_of_batch(stats: Sequence[Any], begun: float, ended: float, built_seconds: float = 0.0) -> list[Timings]:
    """Divides the wall-clock time of requests that vLLM answered together among them, see `types.Timings`.

    vLLM reads all images before it schedules the first request. The rest of the time is divided in proportion to the
    seconds that each request spent in prefill and in decoding. These overlap, so the shares are smaller than they are.

    Args:
        stats: `RequestOutput.metrics` of each request, timestamps in seconds; None where vLLM keeps none.
        begun: When vLLM got the requests, by the same clock (`time.monotonic`).
        ended: When it had answered all.
        built_seconds: How long the requests took to build before.

    Returns:
        Timings without the segmentation; unmeasured where a request has no stats.
    """
    if not stats or any(found is None or not found.scheduled_ts or not found.last_token_ts for found in stats):
        return [Timings()] * len(stats)
    scheduled = min(found.scheduled_ts for found in stats)
    preparation = (built_seconds + max(0.0, scheduled - begun)) / len(stats)
    spans = [(found.first_token_ts - found.scheduled_ts, found.last_token_ts - found.first_token_ts) for found in stats]
    share = max(0.0, ended - max(scheduled, begun)) / (sum(map(sum, spans)) or 1.0)
    return [
        Timings(preparation_ms=1000 * preparation, prefill_ms=1000 * share * first, decoding_ms=1000 * share * rest)
        for first, rest in spans
    ]


def completion_from_tokens(
    backbone: PolicyBackbone,
    token_ids: Sequence[int],
    candidates: Sequence[Mapping[int, float]],
    top_k: int,
    timings: Timings = Timings(),
) -> Completion:
    """Makes a completion from vLLM's tokens.

    Args:
        backbone: Has the tokenizer and the stop tokens.
        token_ids: Sampled tokens, the stop token included where it was sampled.
        candidates: Per token, log-probability by token id: of the sampled token and of the most likely ones.
        top_k: How many of the most likely tokens count for the uncertainty.
        timings: The engine's share of the answer's time.

    Raises:
        ValueError: the answer is empty, or a token has no log-probability.
    """
    if not token_ids or len(candidates) != len(token_ids):
        raise ValueError(f"vLLM answered {len(token_ids)} tokens with {len(candidates)} lists of log-probabilities")
    if missing := [token for token, known in zip(token_ids, candidates, strict=True) if token not in known]:
        raise ValueError(f"vLLM answered token {missing[0]} without its log-probability")
    return make_completion(
        backbone,
        token_ids,
        [known[token] for token, known in zip(token_ids, candidates, strict=True)],
        [sorted(known.values(), reverse=True)[:top_k] for known in candidates],
        token_ids[-1] in backbone.stop_token_ids,
        timings,
    )
