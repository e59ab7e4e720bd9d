"""The GRPO loss on one screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pixelthink.errors import UserError
from pixelthink.grpo.mismatch import RolloutCorrection, rollout_weights

LossAggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"]


@dataclass(frozen=True)
class GRPOConfig:
    """Constants of the algorithm; the defaults are those of PixelThink's released 7B script, but for the loss average.

    Attributes:
        clip: Half-width of the trust region of the probability ratio.
        kl_coef: Weight of the KL to the reference in the loss; 0 loads no reference.
        kl_clamp: Bound on the per-token KL estimate.
        entropy_coef: Weight of the entropy bonus; 0 computes no entropy gradient.
        loss_aggregation: How the losses of tokens become one number; policy gradient, KL and entropy alike.
            `token-mean`: mean over all tokens.
            `seq-mean-token-mean`: mean over completions of each one's token mean. PixelThink's and Seg-Zero's released
            micro-batches of one completion amount to it (`verl/workers/actor/dp_actor.py`).
            `seq-mean-token-sum-norm`: mean over completions of each one's token sum divided by `loss_norm_tokens`
            (Dr. GRPO, arXiv 2503.20783).
        loss_norm_tokens: The constant of `seq-mean-token-sum-norm`, in tokens. Set it to `sampling.max_new_tokens`, as
            Dr. GRPO does: it does not follow that option. 1300 is the limit of the released recipe.
        scale_by_std: Divide advantages by the group's standard deviation.
        minibatches: Optimizer steps per rollout; the prompts are split evenly among them.
        epochs: Passes over each rollout.
        micro_batch_size: Completions per forward and backward; changes memory and speed, never the gradient.
        micro_batch_tokens: Tokens per forward and backward, prompts included, in place of `micro_batch_size`; a group
            stays together where it fits. 0 goes by `micro_batch_size`.
        max_grad_norm: Gradients are scaled down to this norm.
        rollout_correction: Importance weights against a rollout engine that does not quite sample from the policy:
            `token_truncate` and `sequence_truncate` cut them off at a cap (TIS), `token_mask` and `sequence_mask` give
            those beyond it the weight 0 (MIS); see `pixelthink.grpo.mismatch`.
        rollout_correction_cap: The cap. 2 is ms-swift's default; TRL 1.16 has 3, with `sequence_mask`.
    """

    clip: float = 0.2
    kl_coef: float = 5e-3
    kl_clamp: float = 10.0
    entropy_coef: float = 1e-3
    loss_aggregation: LossAggregation = "token-mean"
    loss_norm_tokens: int = 1300
    scale_by_std: bool = True
    minibatches: int = 1
    epochs: int = 1
    micro_batch_size: int = 8
    micro_batch_tokens: int = 0
    max_grad_norm: float = 1.0
    rollout_correction: RolloutCorrection = "none"
    rollout_correction_cap: float = 2.0

    def __post_init__(self) -> None:
        if min(self.minibatches, self.epochs, self.micro_batch_size) < 1:
            raise UserError("grpo: minibatches, epochs and micro_batch_size must be at least 1")
        if self.micro_batch_tokens < 0:
            raise UserError("grpo: micro_batch_tokens must not be negative")
        if not 0 < self.clip < 1 or min(self.kl_coef, self.entropy_coef) < 0:
            raise UserError("grpo: clip must lie in (0, 1); kl_coef and entropy_coef must not be negative")
        if self.kl_clamp <= 0 or self.max_grad_norm <= 0:
            raise UserError("grpo: kl_clamp and max_grad_norm must be positive")
        if self.loss_aggregation not in get_args(LossAggregation):
            known = ", ".join(get_args(LossAggregation))
            raise UserError(f"grpo.loss_aggregation: unknown {self.loss_aggregation!r}, choose from {known}")
        if self.loss_norm_tokens < 1:
            raise UserError(f"grpo.loss_norm_tokens must be at least 1, not {self.loss_norm_tokens}")
        if self.rollout_correction_cap < 1:
            raise UserError("grpo: rollout_correction_cap must be at least 1, the ratio of equal distributions")


@dataclass(frozen=True)
class LossInputs:
    """What the loss of N completions, padded to T tokens, is computed from.

    Attributes:
        logprobs: Log-probabilities under the policy being trained, (N, T), with gradient.
        old_logprobs: The same under the policy that the step started from, (N, T).
        ref_logprobs: The same under the frozen reference, (N, T), or None without KL.
        mask: True (or 1) at completion tokens, (N, T).
        advantages: One a completion, (N,).
        entropy: Entropy of the policy at each token in nats, (N, T); None where it takes no part.
        rollout_logprobs: Log-probabilities under the engine that sampled, (N, T); None where they are not known.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor | None
    mask: Tensor
    advantages: Tensor
    entropy: Tensor | None = None
    rollout_logprobs: Tensor | None = None


@dataclass(frozen=True)
class LossOutput:
    """The loss and its parts.

    Attributes:
        loss: Scalar with gradient.
        stats: Detached scalars `policy_loss, kl, clip_fraction, approx_kl`, and `entropy` where it was given;
            aggregated as the loss is, so that those of micro-batches add up.
    """

    loss: Tensor
    stats: dict[str, Tensor]


def k3_kl(logprobs: Tensor, ref_logprobs: Tensor, clamp: float) -> Tensor:
    """Schulman's k3 estimate of KL(policy ‖ reference) per token: `e^d − d − 1` with d = ref − policy, clamped."""
    difference = ref_logprobs - logprobs
    return (difference.exp() - difference - 1).clamp(-clamp, clamp)


def correction_weights(inputs: LossInputs, mask: Tensor, config: GRPOConfig) -> Tensor | float:
    """Importance weights of the policy that the step started from against the engine that sampled, or 1.

    Raises:
        UserError: a correction is configured but nobody kept the engine's log-probabilities.
    """
    if config.rollout_correction == "none":
        return 1.0
    if inputs.rollout_logprobs is None:
        raise UserError(f"grpo.rollout_correction: {config.rollout_correction} needs the rollout's log-probabilities")
    log_ratio = inputs.old_logprobs - inputs.rollout_logprobs
    return rollout_weights(log_ratio, mask, config.rollout_correction, config.rollout_correction_cap)


def loss_normalizer(mask: Tensor, config: GRPOConfig) -> Tensor:
    """What the summed losses of a minibatch are divided by, a float scalar: its tokens or its completions.

    Args:
        mask: True at completion tokens, (N, T).
        config: `loss_aggregation` decides.
    """
    counted = mask if config.loss_aggregation == "token-mean" else mask.any(dim=1)
    return counted.sum().float()


def grpo_loss(inputs: LossInputs, config: GRPOConfig, normalizer: float | Tensor | None = None) -> LossOutput:
    """Clipped policy-gradient loss plus KL penalty minus entropy bonus, aggregated as the config says.

    Args:
        inputs: See `LossInputs`.
        config: See `GRPOConfig`.
        normalizer: What the sums are divided by; by default `loss_normalizer` of `inputs.mask`. Micro-batches pass the
            one of their minibatch over all processes, so that their losses and gradients add up exactly.

    Returns:
        See `LossOutput`.
    """
    mask = inputs.mask.bool()
    total = loss_normalizer(mask, config) if normalizer is None else normalizer

    def mean(per_token: Tensor) -> Tensor:
        counted = torch.where(mask, per_token, 0.0)
        if config.loss_aggregation == "seq-mean-token-mean":
            counted = counted / mask.sum(dim=1, keepdim=True).clamp(min=1)
        elif config.loss_aggregation == "seq-mean-token-sum-norm":
            counted = counted / config.loss_norm_tokens
        return counted.sum() / total

    logprobs = torch.where(mask, inputs.logprobs, inputs.old_logprobs.detach())  # padding must not overflow in exp
    log_ratio = logprobs - inputs.old_logprobs
    ratio = log_ratio.exp()
    advantages = inputs.advantages[:, None]
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - config.clip, 1 + config.clip)
    weights = correction_weights(inputs, mask, config)
    policy_loss = mean(weights * torch.maximum(unclipped, clipped))

    loss = policy_loss
    stats = {
        "policy_loss": policy_loss.detach(),
        "clip_fraction": mean((clipped > unclipped).float()).detach(),
        "approx_kl": mean(-log_ratio).detach(),
    }
    if inputs.ref_logprobs is not None:
        kl = mean(k3_kl(logprobs, inputs.ref_logprobs, config.kl_clamp))
        loss = loss + config.kl_coef * kl
        stats["kl"] = kl.detach()
    if inputs.entropy is not None:
        entropy = mean(inputs.entropy)
        loss = loss - config.entropy_coef * entropy
        stats["entropy"] = entropy.detach()
    return LossOutput(loss, stats)
