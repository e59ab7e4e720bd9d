"""Log-probabilities of a rollout: under the reference, under the policy before the step, and with gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pixelthink.grpo.experience import Experience
from pixelthink.grpo.loss import GRPOConfig, LossInputs, grpo_loss, loss_normalizer
from pixelthink.grpo.micro_batches import drop_zero_advantage, in_order, micro_batch_rows, micro_batches
from pixelthink.parallel.processes import Processes
from pixelthink.parallel.sharding import run_as_forward, unsharded
from pixelthink.policies.base import EncodedPrompt, PolicyBackbone, TokenScores
from pixelthink.policies.reference import Reference
from pixelthink.types import RolloutBatch


@dataclass(frozen=True)
class Gradients:
    """What computing the gradients of one minibatch gave besides the gradients.

    Attributes:
        stats: `loss` and the numbers of `LossOutput.stats`, summed over all processes; scalars.
        log_ratio: log(policy / rollout) of this process's tokens, (M,).
    """

    stats: dict[str, Tensor]
    log_ratio: Tensor


class Scorer:
    """Scores completions under a policy and its reference.

    Args:
        backbone: Knows the policy.
        policy: The live model.
        reference: How the weights that the policy started from are kept.
        config: Constants of the algorithm.
    """

    def __init__(self, backbone: PolicyBackbone, policy: nn.Module, reference: Reference, config: GRPOConfig) -> None:
        self.backbone = backbone
        self.policy = policy
        self.reference = reference
        self.config = config

    def experience(self, rollout: RolloutBatch, advantages: Tensor) -> Experience[EncodedPrompt]:
        """Everything that the loss needs but the policy's log-probabilities with gradient.

        The completions are scored under the reference where there is a KL term, and under the policy as it is now where
        several updates follow; with one update the ratio is 1 and that forward is saved.

        Args:
            rollout: N completions.
            advantages: (N,).
        """
        device = next(self.policy.parameters()).device
        completions = tuple(torch.tensor(c.token_ids) for c in rollout.completions)
        prompt_index = tuple(i // rollout.group_size for i in range(len(completions)))
        with unsharded(self.policy):
            prompts = self.backbone.share_images(self.policy, self.backbone.encode(rollout.prompts))
        one_update = self.config.minibatches == self.config.epochs == 1
        old = None if one_update else self.frozen_logprobs(self.policy, prompts, completions, prompt_index)
        reference = None
        if self.config.kl_coef > 0:
            with self.reference.weights(self.policy) as model:
                reference = self.frozen_logprobs(model, prompts, completions, prompt_index)
        return Experience(
            prompts=prompts,
            completions=completions,
            prompt_index=prompt_index,
            mask=pad_sequence([torch.ones(len(c), dtype=torch.bool) for c in completions], True).to(device),
            advantages=advantages.to(device),
            old_logprobs=old,
            ref_logprobs=reference,
            rollout_logprobs=pad_sequence([torch.tensor(c.logprobs) for c in rollout.completions], True).to(device),
        )

    @torch.no_grad()
    def frozen_logprobs(
        self,
        model: nn.Module,
        prompts: Sequence[EncodedPrompt],
        completions: Sequence[Tensor],
        prompt_index: Sequence[int],
    ) -> Tensor:
        """Log-probabilities of all completions under a model, (N, T), without gradient."""
        rows = micro_batch_rows(prompts, completions, prompt_index, self.config, self.backbone.shares_prefix)
        with unsharded(model):
            scores = [
                self.backbone.score(
                    model, prompts, [completions[row] for row in part], [prompt_index[row] for row in part]
                ).logprobs
                for part in rows
            ]
        return in_order(scores, rows)

    def gradients(
        self,
        minibatch: Experience[EncodedPrompt],
        processes: Processes,
        backward: Callable[[Tensor], None] = Tensor.backward,
    ) -> Gradients:
        """Adds a minibatch's gradients to the policy's parameters.

        The split into micro-batches and processes does not change them: each part of the loss is divided by the number
        of tokens (or completions, see `GRPOConfig.loss_aggregation`) that all processes have together.

        Args:
            minibatch: This process's part.
            processes: Of the run.
            backward: Backpropagates a loss; the trainer's own where there is one.
        """
        normalizer = processes.sum(loss_normalizer(minibatch.mask, self.config))
        pieces = micro_batches(drop_zero_advantage(minibatch, self.config), self.config, self.backbone.shares_prefix)
        totals: dict[str, Tensor] = {}
        log_ratios = []
        with processes.own_gradients():
            for piece in processes.pad_micro_batches(pieces, Experience.masked_dummy):
                inputs = self.loss_inputs(piece)
                output = grpo_loss(inputs, self.config, normalizer=normalizer)
                backward(output.loss)
                for name, value in {"loss": output.loss.detach(), **output.stats}.items():
                    totals[name] = totals.get(name, torch.zeros_like(value)) + value
                if inputs.rollout_logprobs is not None:
                    log_ratios.append((inputs.old_logprobs - inputs.rollout_logprobs)[inputs.mask])
        return Gradients({name: processes.sum(value) for name, value in totals.items()}, torch.cat(log_ratios))

    def loss_inputs(self, piece: Experience[EncodedPrompt]) -> LossInputs:
        """Scores a micro-batch under the policy, with gradient."""
        scores = score_with_gradient(
            self.backbone, self.policy, piece.prompts, piece.completions, piece.prompt_index, with_entropy=True
        )
        assert scores.entropy is not None
        entropy = scores.entropy if self.config.entropy_coef > 0 else scores.entropy.detach()  # a curve either way
        old = scores.logprobs.detach() if piece.old_logprobs is None else piece.old_logprobs
        return LossInputs(
            scores.logprobs, old, piece.ref_logprobs, piece.mask, piece.advantages, entropy, piece.rollout_logprobs
        )


def score_with_gradient(
    backbone: PolicyBackbone,
    policy: nn.Module,
    prompts: Sequence[EncodedPrompt],
    completions: Sequence[Tensor],
    prompt_index: Sequence[int],
    with_entropy: bool = False,
) -> TokenScores:
    """`PolicyBackbone.score` as the policy's forward pass; all processes call it together where it is sharded."""

    def forward() -> tuple[Tensor, Tensor | None]:
        scores = backbone.score(policy, prompts, completions, prompt_index, with_entropy)
        return scores.logprobs, scores.entropy

    return TokenScores(*run_as_forward(policy, forward))
