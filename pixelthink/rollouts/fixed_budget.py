"""Baselines that any learned budget has to beat: thinking cut off after a fixed number of tokens, or left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from jsonargparse import lazy_instance

from pixelthink.components import resolved
from pixelthink.parsing import answer_text, parse_completion
from pixelthink.rollouts.base import RolloutEngine, SamplingConfig
from pixelthink.rollouts.hf import HFEngine
from pixelthink.timing import now
from pixelthink.types import Completion, Prompt, PromptBatch, RolloutBatch, Timings

if TYPE_CHECKING:
    from torch import nn

    from pixelthink.policies.base import PolicyBackbone

THINK = "<think>"


class FixedBudget(RolloutEngine):
    """Lets the policy think for at most so many tokens, then makes it answer (budget forcing, arXiv 2501.19393).

    The response is begun with `<think>`. Where the thinking has not ended after `think_tokens` tokens it is cut off and
    `closing` is put down, from which the policy goes on; where it ended earlier, nothing is forced. With a budget of 0
    the response begins with `<think></think><answer>`: no thinking (arXiv 2504.09858). No training is needed and every
    question gets the same, which is what makes it a baseline.

    For evaluation: completions hold the sampled tokens and not those that were put down, so they cannot train. Going on
    after the cut reads the prompt once more, and the timings show it. A policy that was trained to one way of thinking
    may well answer badly after a cut; that, too, is what a baseline shows.

    Args:
        think_tokens: Tokens inside `<think>` before the cut.
        closing: What is put down at the cut. Words that lead to a conclusion leave the policy to draw it and to close
            its thinking itself, which costs a few tokens more.
        engine: What samples.

    Raises:
        ValueError: a negative budget; in `generate`, several completions a prompt, or a budget that leaves no token for
            the answer.
    """

    def __init__(
        self,
        think_tokens: int = 0,
        closing: str = "</think><answer>",
        engine: RolloutEngine = lazy_instance(HFEngine),
    ) -> None:
        if think_tokens < 0:
            raise ValueError(f"FixedBudget: think_tokens must not be negative, got {think_tokens}")
        self.think_tokens = think_tokens
        self.closing = closing
        self.engine = resolved(engine)

    def setup(self, backbone: PolicyBackbone, model: nn.Module) -> None:
        self.backbone = backbone
        self.engine.setup(backbone, model)

    def generate(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> RolloutBatch:
        if sampling.group_size != 1:
            raise ValueError("FixedBudget is for evaluation: it answers each prompt once, so group_size must be 1")
        if self.think_tokens >= sampling.max_new_tokens:
            raise ValueError(
                f"FixedBudget: {self.think_tokens} think_tokens leave nothing of max_new_tokens "
                f"{sampling.max_new_tokens}"
            )
        started = now()
        thoughts, version = self._thoughts(batch, sampling, seed)
        completions = [thought for _, thought in thoughts]
        open_ones = [i for i, (start, _) in enumerate(thoughts) if start]
        if open_ones:
            prompts = [replace(batch.prompts[i], response_start=thoughts[i][0]) for i in open_ones]
            rest = replace(sampling, max_new_tokens=sampling.max_new_tokens - self.think_tokens)
            places = tuple(batch.places[i] for i in open_ones)
            answers = self.engine.generate(PromptBatch(tuple(prompts), places), rest, seed)
            version = answers.policy_version
            for i, prompt, answer in zip(open_ones, prompts, answers.completions, strict=True):
                completions[i] = self._joined(prompt, thoughts[i][1], answer)
        done = tuple(completion for completion in completions if completion is not None)
        return RolloutBatch(batch.prompts, done, 1, version, now() - started)

    def _thoughts(
        self, batch: PromptBatch, sampling: SamplingConfig, seed: int
    ) -> tuple[list[tuple[str, Completion | None]], int]:
        """Of each prompt, what the answer goes on from ("" where the response is complete) and what was sampled."""
        if self.think_tokens == 0:
            return [(THINK + self.closing, None)] * len(batch), 0
        prompts = tuple(replace(prompt, response_start=THINK) for prompt in batch.prompts)
        budget = replace(sampling, max_new_tokens=self.think_tokens)
        rollout = self.engine.generate(PromptBatch(prompts, batch.places), budget, seed)
        thoughts: list[tuple[str, Completion | None]] = []
        for prompt, thought in zip(prompts, rollout.completions, strict=True):
            text = THINK + thought.text
            if thought.finish_reason == "stop":
                thoughts.append(("", self._joined(prompt, None, thought)))
            else:
                thoughts.append((text if "</think>" in text else text + self.closing, thought))
        return thoughts, rollout.policy_version

    def _joined(self, prompt: Prompt, thought: Completion | None, rest: Completion) -> Completion:
        """One completion of the text that was put down or thought before, and what came after it."""
        pieces = [rest] if thought is None else [thought, rest]
        text = prompt.response_start + rest.text
        return replace(
            rest,
            token_ids=tuple(token for piece in pieces for token in piece.token_ids),
            logprobs=tuple(logprob for piece in pieces for logprob in piece.logprobs),
            text=text,
            reasoning_tokens=self.backbone.count_tokens(parse_completion(text).reasoning),
            answer_tokens=self.backbone.count_tokens(answer_text(text)),
            uncertainty=_mean_uncertainty(pieces),
            timings=_summed([piece.timings for piece in pieces]),
        )

    @contextmanager
    def serving(self) -> Iterator[None]:
        with self.engine.serving():
            yield

    @property
    def sampler(self) -> RolloutEngine:
        return self.engine.sampler

    def sleep(self) -> None:
        self.engine.sleep()

    def close(self) -> None:
        self.engine.close()


def _mean_uncertainty(pieces: Sequence[Completion]) -> float | None:
    """Mean over the tokens of all pieces; None where a piece has none."""
    total = 0.0
    for piece in pieces:
        if piece.uncertainty is None:
            return None
        total += piece.uncertainty * len(piece.token_ids)
    return total / sum(len(piece.token_ids) for piece in pieces)


def _summed(timings: Sequence[Timings]) -> Timings:
    """Stage by stage; None where one of them was not measured."""

    def total(stage: str) -> float | None:
        values = [getattr(timing, stage) for timing in timings]
        return None if None in values else sum(values)

    return Timings(total("preparation_ms"), total("prefill_ms"), total("decoding_ms"))
