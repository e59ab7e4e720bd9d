"""What vLLM is asked, in this process or on a server, and what its answers mean.

Image prompts go out as a chat-templated text with one *unexpanded* placeholder per image and the picture beside it:
vLLM expands it, and a prompt that was expanded before is expanded twice. Log-probabilities come back in vLLM's
`raw_logprobs` mode, i.e. at temperature 1 before any token is forbidden, which is what `Completion.logprobs` means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pixelthink.rollouts.base import SamplingConfig
from pixelthink.rollouts.completions import make_completion
from pixelthink.types import Completion, Prompt, Timings

if TYPE_CHECKING:
    from PIL import Image

    from pixelthink.policies.base import PolicyBackbone

FORBIDDEN_BIAS = -100.0
"""Added to the logit of a token that may not be sampled; the most that the OpenAI protocol admits."""


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
    """What vLLM is sent of a prompt."""
    text = backbone.prompt_text(prompt)
    images = (prompt.image,) if image_parts(prompt) else ()
    return ImagePrompt(text, tuple(backbone.processor.tokenizer(text)["input_ids"]), images)


def image_parts(prompt: Prompt) -> int:
    """Number of image entries in a prompt's messages."""
    contents = [message["content"] for message in prompt.messages]
    return sum(part["type"] == "image" for content in contents if not isinstance(content, str) for part in content)


def forbidden_bias(backbone: PolicyBackbone) -> dict[int, float]:
    """Logit bias by token id that keeps image and video placeholders from being sampled."""
    return dict.fromkeys(backbone.forbidden_token_ids, FORBIDDEN_BIAS)


def request_seeds(seed: int, places: Sequence[int]) -> list[int]:
    """One seed per request, below 2**62; vLLM adds a completion's number in its group to it.

    Args:
        seed: The rollout's, a function of run seed and step.
        places: Place of each prompt in the step's batch, whatever process it is on.
    """
    generator = torch.Generator().manual_seed(seed)
    table = torch.randint(2**62, (max(places) + 1,), generator=generator).tolist()
    return [table[place] for place in places]


def sampling_options(backbone: PolicyBackbone, sampling: SamplingConfig, seed: int) -> dict[str, Any]:
    """Keyword arguments of `vllm.SamplingParams` for one prompt; a server takes those of the same meaning.

    The end is where the policy's stop tokens are, whatever the checkpoint's generation config says (`ignore_eos` with
    stop ids of our own).
    """
    return {
        "n": sampling.group_size,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_new_tokens,
        "seed": seed,
        "logprobs": sampling.uncertainty_top_k,
        "logit_bias": forbidden_bias(backbone),
        "stop_token_ids": list(backbone.stop_token_ids),
        "ignore_eos": True,
    }


def shares_of_batch(stats: Sequence[Any], begun: float, ended: float, built_seconds: float = 0.0) -> list[Timings]:
    """Each request's share of the wall-clock time of requests that vLLM answered together, see `types.Timings`.

    vLLM reads all images before the first request is scheduled. The rest of the time is divided in proportion to the
    seconds that each request spent in prefill and in decoding: they overlap, so the shares are smaller than these.

    Args:
        stats: `RequestOutput.metrics` of each, timestamps in seconds; None where vLLM keeps none.
        begun: When vLLM was asked, by the same clock (`time.monotonic`).
        ended: When it had answered.
        built_seconds: What making the requests took before.

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
    """A completion from vLLM's tokens.

    Args:
        backbone: Knows the tokenizer and the stop tokens.
        token_ids: Sampled tokens, the stop token included where it was sampled.
        candidates: Per token, log-probability by token id: of the sampled token and of the most likely ones.
        top_k: How many of the most likely count for the uncertainty.
        timings: The engine's share of the answer's time.

    Raises:
        ValueError: if the answer is empty, or tokens and log-probabilities do not belong together; one line.
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
