"""Numbers of a training rollout that are worth a curve."""

from __future__ import annotations

from pixelthink.types import LEVELS, RewardOutput, RolloutBatch, difficulty_level

Sums = dict[str, tuple[float, int]]


def rollout_sums(rollout: RolloutBatch, rewards: RewardOutput) -> Sums:
    """Sums and counts over a rollout's completions: reward and its parts, lengths, uncertainty, truncation, by level.

    Every name is there on every process, with count 0 where nothing had it, so that processes can add theirs up.
    """
    names = ["reward", *(f"reward_{part}" for part in rewards.scores[0].parts), "length_score", "length_budget"]
    names += ["response_tokens", "reasoning_tokens", "truncated", "uncertainty"]
    names += [f"{name}_{level}" for level in LEVELS for name in ("reasoning_tokens", "reward")]
    sums: Sums = dict.fromkeys(names, (0.0, 0))

    def note(name: str, value: float | None) -> None:
        if value is not None:
            total, count = sums[name]
            sums[name] = (total + float(value), count + 1)

    for index, (completion, score) in enumerate(zip(rollout.completions, rewards.scores, strict=True)):
        note("reward", score.reward)
        for part, value in score.parts.items():
            note(f"reward_{part}", value)
        note("length_score", score.length_score)
        note("length_budget", score.length_budget)
        note("response_tokens", len(completion.token_ids))
        note("reasoning_tokens", completion.reasoning_tokens)
        note("truncated", completion.finish_reason == "length")
        note("uncertainty", completion.uncertainty)
        difficulty = rollout.prompt_of(index).sample.difficulty
        if difficulty is not None:
            note(f"reasoning_tokens_{difficulty_level(difficulty)}", completion.reasoning_tokens)
            note(f"reward_{difficulty_level(difficulty)}", score.reward)
    return sums
