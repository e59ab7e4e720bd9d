"""Engines with weights of their own: when they get the policy's, and the proof that they have them.

The proof: one image rollout is kept, and after each sync and each waking engine and policy score it. Where they differ
by more than the engine's precision explains, the run stops with both numbers and what the differences say about why.
Besides the log-probabilities the proof compares the prompt's tokens as engine and policy read them, exactly.

What it can see is a difference above the precision's noise: one step of a small learning rate in bfloat16 may stay
below, many do not, and neither do a tower left behind, a prompt read differently or the weights of the beginning.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pixelthink.parallel.sharding import unsharded
from pixelthink.rollouts.base import EngineScore, RolloutEngine, SamplingConfig, SyncReport
from pixelthink.timing import now
from pixelthink.types import Prompt, PromptBatch, RolloutBatch

if TYPE_CHECKING:
    from pixelthink.policies.base import EncodedPrompt, PolicyBackbone

LIMITS = {"float32": 2e-5, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest mean |difference| of log-probabilities that passes, by the engine's precision. Float32 was measured (about
1e-6 on a CPU); the others are choices, from the 8 and 11 bits of their mantissas, that no GPU has confirmed here."""
PROOF_SEED = 0
PROOF_TEMPERATURE = 1.5
"""Temperature of the rollout that is kept: unlikely tokens move most when weights do."""


class WeightSyncError(RuntimeError):
    """The engine does not sample from the policy's weights; one line with both numbers and the likely causes."""


@dataclass(frozen=True)
class SyncConfig:
    """When weights are handed over and how the proof judges.

    Attributes:
        every_n_steps: Optimizer steps after which a training rollout needs newer weights; 1 always samples from the
            current ones. Evaluation always does.
        prove: Compare engine and policy after each sync and each waking.
        limit: Largest mean |difference| of log-probabilities that passes; None goes by the engine's precision.
        proof_tokens: Most tokens of the rollout that is compared.
    """

    every_n_steps: int = 1
    prove: bool = True
    limit: float | None = None
    proof_tokens: int = 24

    def __post_init__(self) -> None:
        if min(self.every_n_steps, self.proof_tokens) < 1:
            raise ValueError("RolloutWeightSync: every_n_steps and proof_tokens must be at least 1")
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"RolloutWeightSync: limit must be positive, not {self.limit}")


@dataclass(frozen=True)
class Proof:
    """The comparison after a sync.

    Attributes:
        difference: Mean |difference| of the log-probabilities of the kept rollout's tokens.
        limit: What it may be.
        engine: Mean log-probability of a token under the engine.
        policy: The same under the policy.
        seconds: Wall-clock time of the comparison.
    """

    difference: float
    limit: float
    engine: float
    policy: float
    seconds: float

    def failure(self, version: int, causes: Sequence[str]) -> str:
        """The line on which a run stops."""
        return (
            f"the rollout engine does not sample from the policy's weights of step {version}: a kept rollout's tokens "
            f"have mean log-probability {self.engine:.6f} in the engine and {self.policy:.6f} in the policy, mean "
            f"difference {self.difference:.1e} against a limit of {self.limit:.0e}. Most likely: {'; or '.join(causes)}"
        )


class WeightSync:
    """Keeps an engine's weights up to date with one policy.

    Args:
        engine: Has been set up. One that holds no weights needs nothing and gets nothing.
        backbone: Knows the policy.
        policy: The live model.
        config: See `SyncConfig`.
    """

    def __init__(self, engine: RolloutEngine, backbone: PolicyBackbone, policy: nn.Module, config: SyncConfig) -> None:
        self.engine = engine
        self.backbone = backbone
        self.policy = policy
        self.config = config
        self.report: SyncReport | None = None
        self.proof: Proof | None = None
        self.syncs = 0
        self._stamp: int | None = None
        self._kept: RolloutBatch | None = None
        self._known: dict[int, tuple[float, ...]] = {}

    def bring_up_to_date(self, version: int, batch: PromptBatch, *, evaluating: bool = False) -> None:
        """Wakes the engine, hands it newer weights where they are due, and proves that it has them.

        Args:
            version: Optimizer steps that the policy has seen.
            batch: What will be sampled next; the first time, its first prompt becomes the kept rollout's.
            evaluating: Staleness is not allowed.

        Raises:
            WeightSyncError: the engine's log-probabilities are not the policy's; one line.
        """
        if not self.engine.holds_weights:
            return
        woken = self.engine.asleep
        if woken:
            self.engine.wake()
        due = self._is_due(version, evaluating)
        if due:
            self.report = self._hand_over(version)
            self.syncs += 1
            self._stamp = self.policy_stamp()
        if self.config.prove and (due or (woken and self._is_current())):
            with unsharded(self.policy):
                self._prove(version, batch, woken)

    def _hand_over(self, version: int) -> SyncReport:
        """Gives the engine all weights, or, where it serves adapters and has the weights below, the adapter alone."""
        if not self.engine.serves_adapters:
            return self.engine.sync(self.backbone.sync_weights(self.policy), version)
        base = () if self.engine.version is not None else self.backbone.base_weights(self.policy)
        with tempfile.TemporaryDirectory(prefix="pixelthink-adapter-") as folder:
            self.backbone.write_adapter(self.policy, Path(folder))
            return self.engine.sync(base, version, Path(folder))

    def _is_due(self, version: int, evaluating: bool) -> bool:
        if self.engine.version is None:
            return True
        if self._is_current() and version == self.engine.version:
            return False
        return evaluating or not 0 <= version - self.engine.version < self.config.every_n_steps

    def _is_current(self) -> bool:
        """Whether nothing has written to the policy since the last sync."""
        return self._stamp == self.policy_stamp()

    def policy_stamp(self) -> int:
        """A number that grows with each write to a parameter, whoever writes: torch's own version counters.

        So weights loaded between two evaluations are noticed although no optimizer stepped.
        """
        return sum(parameter._version for parameter in self.policy.parameters())

    def _prove(self, version: int, batch: PromptBatch, woken: bool) -> None:
        started = now()
        kept = self._kept = self._kept or self._rollout_to_keep(batch)
        found = self.engine.score(kept)[0]
        encoded = self.backbone.encode(kept.prompts)[0]
        expected = policy_logprobs(self.backbone, self.policy, encoded, kept)
        limit = LIMITS[self.engine.dtype] if self.config.limit is None else self.config.limit
        self.proof = Proof(
            difference=mean_difference(found.logprobs, expected),
            limit=limit,
            engine=sum(found.logprobs) / len(found.logprobs),
            policy=sum(expected) / len(expected),
            seconds=now() - started,
        )
        causes = prompt_causes(self.backbone, encoded, found)
        if not causes and not self.proof.difference <= limit:  # a NaN is a difference too
            causes = self._weight_causes(kept, found, woken, limit)
        if causes:
            raise WeightSyncError(self.proof.failure(version, causes))
        first = min(self._known, default=version)
        self._known = {first: self._known.get(first, expected), version: expected}

    def _rollout_to_keep(self, batch: PromptBatch) -> RolloutBatch:
        """The longest of a few short completions of the first prompt."""
        sampling = SamplingConfig(4, self.config.proof_tokens, temperature=PROOF_TEMPERATURE)
        sampled = self.engine.generate(PromptBatch(batch.prompts[:1]), sampling, PROOF_SEED)
        longest = max(sampled.completions, key=lambda completion: len(completion.token_ids))
        return RolloutBatch(sampled.prompts, (longest,), 1, sampled.policy_version)

    def _weight_causes(self, kept: RolloutBatch, found: EngineScore, woken: bool, limit: float) -> list[str]:
        """What the differences say about their origin, most certain first."""
        causes = []
        for version, logprobs in sorted(self._known.items(), reverse=True):
            if mean_difference(found.logprobs, logprobs) <= limit:
                cause = "the weights came back from before the sleep" if woken else "the sync did not reach it"
                start = " (those that this run started from, the base weights)" if version == min(self._known) else ""
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
            "the precisions differ (rollout.dtype, trainer.precision): raise the callback's limit if that is meant",
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
    """What is wrong with the prompt that the engine read; nothing where it is token for token the policy's."""
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
    """A prompt's texts alone."""

    def texts(content: Any) -> Any:
        return content if isinstance(content, str) else [part for part in content if part["type"] != "image"]

    return replace(prompt, messages=[{**message, "content": texts(message["content"])} for message in prompt.messages])
