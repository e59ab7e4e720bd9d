"""The parity check: does a rollout engine compute with the policy's weights?

One image rollout is kept. After each weight sync and each waking, engine and policy both score it. Where the two
differ by more than the engine's precision explains, the run stops with both numbers and the likely cause. The tokens
of the prompt, as both read them, are compared too, exactly.

The check sees differences above the noise of the precision. One step of a small learning rate in bfloat16 may stay
below it; many such steps do not, and neither do a vision tower that was left behind, another prompt or old weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pixelthink.errors import UserError
from pixelthink.parallel.sharding import unsharded
from pixelthink.policies.base import EncodedPrompt, PolicyBackbone
from pixelthink.rollouts.base import EngineScore, RolloutEngine, SamplingConfig
from pixelthink.timing import now
from pixelthink.types import Prompt, PromptBatch, RolloutBatch

LIMITS = {"float32": 2e-5, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest mean |difference| of log-probabilities that passes, by the engine's precision. Float32 was measured (about
1e-6 on a CPU). The others are chosen from the 8 and 11 bits of their mantissas; no GPU has confirmed them here."""
SEED, TEMPERATURE, COMPLETIONS = 0, 1.5, 4
"""How the kept rollout is sampled. It is hot, because unlikely tokens move most when weights change."""


class WeightSyncError(UserError):
    """The engine does not sample from the policy's weights; one line with both numbers and the likely causes."""


@dataclass(frozen=True)
class ParityCheck:
    """The result of one check.

    Attributes:
        difference: Mean |difference| of the log-probabilities of the kept rollout's tokens.
        limit: The largest difference that passes.
        engine: Mean log-probability of a token in the engine.
        policy: The same in the policy.
        seconds: Wall-clock time of the check.
    """

    difference: float
    limit: float
    engine: float
    policy: float
    seconds: float

    def failure(self, version: int, causes: Sequence[str]) -> str:
        """The message with which a run stops."""
        return (
            f"the rollout engine does not sample from the policy's weights of step {version}: a kept rollout's tokens "
            f"have mean log-probability {self.engine:.6f} in the engine and {self.policy:.6f} in the policy, mean "
            f"difference {self.difference:.1e} against a limit of {self.limit:.0e}. Most likely: {'; or '.join(causes)}"
        )


class ParityChecker:
    """Compares an engine with the policy on one kept rollout.

    Args:
        engine: Holds weights of its own and has been set up.
        backbone: Knows how the policy is prompted and scored.
        policy: The live model.
        limit: Largest mean |difference| that passes; None takes the one of the engine's precision.
        tokens: Most tokens of the kept rollout.
    """

    def __init__(
        self, engine: RolloutEngine, backbone: PolicyBackbone, policy: nn.Module, limit: float | None, tokens: int
    ) -> None:
        self.engine = engine
        self.backbone = backbone
        self.policy = policy
        self.limit = limit
        self.tokens = tokens
        self._kept: RolloutBatch | None = None
        self._logprobs: dict[int, tuple[float, ...]] = {}  # of the kept rollout, under the first and the last version

    def check(self, version: int, batch: PromptBatch, *, woken: bool) -> ParityCheck:
        """Scores the kept rollout in engine and policy.

        Args:
            version: Optimizer steps that the policy has seen.
            batch: Its first prompt becomes the kept rollout's, the first time.
            woken: Whether the engine has just been woken; for the message.

        Raises:
            WeightSyncError: the two differ by more than the limit; one line.
        """
        started = now()
        with unsharded(self.policy):
            kept = self._kept = self._kept or self._sample(batch)
            found = self.engine.score(kept)[0]
            encoded = self.backbone.encode(kept.prompts)[0]
            expected = policy_logprobs(self.backbone, self.policy, encoded, kept)
            limit = LIMITS[self.engine.dtype] if self.limit is None else self.limit
            result = ParityCheck(
                difference=mean_difference(found.logprobs, expected),
                limit=limit,
                engine=sum(found.logprobs) / len(found.logprobs),
                policy=sum(expected) / len(expected),
                seconds=now() - started,
            )
            causes = prompt_causes(self.backbone, encoded, found)
            if not causes and not result.difference <= limit:  # a NaN fails too
                causes = self._weight_causes(kept, found, woken, limit)
        if causes:
            raise WeightSyncError(result.failure(version, causes))
        first = min(self._logprobs, default=version)
        self._logprobs = {first: self._logprobs.get(first, expected), version: expected}
        return result

    def _sample(self, batch: PromptBatch) -> RolloutBatch:
        """The longest of a few short completions of the first prompt."""
        sampling = SamplingConfig(COMPLETIONS, self.tokens, temperature=TEMPERATURE)
        sampled = self.engine.generate(PromptBatch(batch.prompts[:1]), sampling, SEED)
        longest = max(sampled.completions, key=lambda completion: len(completion.token_ids))
        return RolloutBatch(sampled.prompts, (longest,), 1, sampled.policy_version)

    def _weight_causes(self, kept: RolloutBatch, found: EngineScore, woken: bool, limit: float) -> list[str]:
        """Why the log-probabilities may differ, the most certain cause first."""
        causes = []
        for version, logprobs in sorted(self._logprobs.items(), reverse=True):
            if mean_difference(found.logprobs, logprobs) <= limit:
                cause = "the weights came back from before the sleep" if woken else "the sync did not reach it"
                start = (
                    " (those that this run started from, the base weights)" if version == min(self._logprobs) else ""
                )
                causes.append(f"the engine still serves the weights of step {version}{start}: {cause}")
        text = replace(kept, prompts=(without_images(kept.prompts[0]),))
        encoded = self.backbone.encode_text(text.prompts[0])
        expected = policy_logprobs(self.backbone, self.policy, encoded, text)
        if not causes and mean_difference(self.engine.score(text)[0].logprobs, expected) <= limit:
            causes.append(
                "without the image both agree: the vision tower's weights were not synced (the language model's were), "
                "or features of old images are still cached"
            )
        return causes or [
            "only some of the weights arrived (names that vLLM does not load, adapters not merged)",
            "the precisions differ (rollout.dtype, trainer.precision): raise RolloutWeightSync's limit if it is meant",
        ]


def policy_logprobs(
    backbone: PolicyBackbone, policy: nn.Module, prompt: EncodedPrompt, rollout: RolloutBatch
) -> tuple[float, ...]:
    """Log-probabilities of a rollout's only completion under the policy."""
    was_training = policy.training
    policy.eval()
    with torch.no_grad():
        scores = backbone.score(policy, [prompt], [torch.tensor(rollout.completions[0].token_ids)], [0])
    policy.train(was_training)
    return tuple(scores.logprobs[0].float().tolist())


def mean_difference(found: Sequence[float], expected: Sequence[float]) -> float:
    """Mean |difference| of log-probabilities of the same tokens."""
    return sum(abs(a - b) for a, b in zip(found, expected, strict=True)) / len(found)


def prompt_causes(backbone: PolicyBackbone, encoded: EncodedPrompt, found: EngineScore) -> list[str]:
    """Why the engine read another prompt than the policy; empty where both read the same tokens."""
    expected, read = encoded.token_ids.tolist(), list(found.prompt_token_ids)
    if read == expected:
        return []
    image = set(backbone.forbidden_token_ids)
    counts = [sum(token in image for token in tokens) for tokens in (read, expected)]
    return [
        f"the engine reads another prompt, {len(read)} tokens with {counts[0]} image tokens where the policy reads "
        f"{len(expected)} with {counts[1]}: expanded image tokens were sent (send one placeholder and the picture), or "
        "the image processors differ"
    ]


def without_images(prompt: Prompt) -> Prompt:
    """The prompt with its texts alone."""

    def texts(content: Any) -> Any:
        return content if isinstance(content, str) else [part for part in content if part["type"] != "image"]

    return replace(prompt, messages=[{**message, "content": texts(message["content"])} for message in prompt.messages])
