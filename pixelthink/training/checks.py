"""What a GRPO run refuses before anything is loaded."""

from __future__ import annotations

import lightning as L

from pixelthink.answering.answerer import Answerer
from pixelthink.data.datamodule import PromptData
from pixelthink.errors import UserError
from pixelthink.grpo.loss import GRPOConfig
from pixelthink.rewards.base import Reward
from pixelthink.rollouts.base import SamplingConfig


def check_training(
    trainer: L.Trainer,
    answerer: Answerer,
    reward: Reward,
    config: GRPOConfig,
    sampling: SamplingConfig,
    sample_ahead: bool,
) -> None:
    """Refuses a run whose parts do not fit.

    Raises:
        UserError: there is one completion a group; a constant is set that nothing reads; the reward reads another
            answer style than the prompts ask for; or sampling ahead is asked for and cannot work.
    """
    if sampling.group_size < 2:
        raise UserError(
            "model.sampling.group_size is 1: GRPO compares the completions of a group, so it must be 2 or more"
        )
    _check_constants_are_read(config)
    _check_answer_style(trainer, reward)
    if sample_ahead:
        _check_sampling_ahead(trainer, answerer, config)


def _check_constants_are_read(config: GRPOConfig) -> None:
    """A constant that was changed must be one that the loss reads; the default cannot be told from one that was set."""
    tokens, cap = config.loss_norm_tokens, config.rollout_correction_cap
    if config.loss_aggregation != "seq-mean-token-sum-norm" and tokens != GRPOConfig.loss_norm_tokens:
        raise UserError(
            f"model.grpo.loss_norm_tokens is {tokens}, which loss_aggregation {config.loss_aggregation} does not read: "
            "set that to seq-mean-token-sum-norm, or leave loss_norm_tokens out"
        )
    if config.rollout_correction == "none" and cap != GRPOConfig.rollout_correction_cap:
        raise UserError(
            f"model.grpo.rollout_correction_cap is {cap:g}, but rollout_correction is none: set that, e.g. to "
            "token_truncate, or leave the cap out"
        )


def _check_answer_style(trainer: L.Trainer, reward: Reward) -> None:
    """The reward has to read the answers that the prompts ask for."""
    prompt = getattr(getattr(trainer, "datamodule", None), "prompt", None)
    asked = prompt.answer_style if prompt is not None else "single"
    if asked != reward.answer_style:
        raise UserError(
            f"data.prompt asks for answers in style {asked!r}, but model.reward, a {type(reward).__name__}, reads "
            f"{reward.answer_style!r}: every answer would fail"
        )


def _check_sampling_ahead(trainer: L.Trainer, answerer: Answerer, config: GRPOConfig) -> None:
    """The engine must sample beside the training, the bias be corrected, and the next batch be known."""
    if not answerer.samples_beside_training:
        engine = answerer.engine_type.__name__
        raise UserError(f"sample_ahead: {engine} samples in this process; use VLLMServerEngine, or leave it off")
    if config.rollout_correction == "none":
        raise UserError("sample_ahead is off-policy: set grpo.rollout_correction, e.g. to token_truncate")
    if not isinstance(getattr(trainer, "datamodule", None), PromptData):
        raise UserError("sample_ahead needs a PromptData datamodule, whose loader knows the next batch")
