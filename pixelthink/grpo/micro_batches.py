"""How a minibatch is cut into forward and backward passes: by completions or by tokens. The gradient is the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pixelthink.grpo.experience import Experience, TokenPrompt
from pixelthink.grpo.loss import GRPOConfig

PromptT = TypeVar("PromptT", bound=TokenPrompt)


def micro_batch_rows(
    prompts: Sequence[PromptT],
    completions: Sequence[Tensor],
    prompt_index: Sequence[int],
    config: GRPOConfig,
    shared_prefix: bool = True,
) -> list[list[int]]:
    """Which completions share a forward and backward pass; each is in one pass.

    Args:
        prompts: P prompts.
        completions: Token ids of N completions, int64 (length,) each.
        prompt_index: Which prompt each completion follows, (N,).
        config: `micro_batch_tokens` where positive, else `micro_batch_size` consecutive completions.
        shared_prefix: Whether the policy computes a prompt once for all its completions of a pass.

    Returns:
        Indices of completions, pass by pass.
    """
    count, size = len(completions), config.micro_batch_size
    if not config.micro_batch_tokens:
        return [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    plan = plan_shared if shared_prefix else plan_padded
    lengths = [len(prompt.token_ids) for prompt in prompts], [len(completion) for completion in completions]
    return plan(*lengths, prompt_index, config.micro_batch_tokens)


def micro_batches(
    experience: Experience[PromptT], config: GRPOConfig, shared_prefix: bool = True
) -> list[Experience[PromptT]]:
    """An experience in the pieces of `micro_batch_rows`."""
    parts = experience.prompts, experience.completions, experience.prompt_index
    return [experience.select(rows) for rows in micro_batch_rows(*parts, config, shared_prefix)]


def in_order(values: Sequence[Tensor], rows: Sequence[Sequence[int]]) -> Tensor:
    """Per-token values of passes, each (n, t), as one (N, T) in the order of the completions.

    Args:
        values: Of each pass.
        rows: Which completions each pass holds, as `micro_batch_rows` gives them.
    """
    found = {
        row: value for part, table in zip(rows, values, strict=True) for row, value in zip(part, table, strict=True)
    }
    return pad_sequence([found[row] for row in range(len(found))], batch_first=True)


def drop_zero_advantage(experience: Experience[PromptT], config: GRPOConfig) -> Experience[PromptT]:
    """Without the completions that cannot move the policy: those of advantage 0, where neither KL nor entropy counts.

    Loss and gradient stay the same if the normalizer stays the whole experience's token count. One completion is kept
    in any case, so that there is a backward pass.
    """
    if config.kl_coef > 0 or config.entropy_coef > 0:
        return experience
    rows = experience.advantages.nonzero()[:, 0].tolist()
    return experience if len(rows) == len(experience) else experience.select(rows or [0])


def plan_shared(
    prompts: Sequence[int], completions: Sequence[int], prompt_index: Sequence[int], budget: int
) -> list[list[int]]:
    """Fills packed rows, in which a prompt stands once, up to a budget of tokens.

    A group stays together if it fits; else its completions are spread over as few pieces as first-fit finds, with the
    prompt in each. A single completion that is over the budget with its prompt is a piece of its own.

    Args:
        prompts: Tokens of each prompt.
        completions: Tokens of each completion.
        prompt_index: Which prompt each completion follows.
        budget: Tokens of a piece.

    Returns:
        Indices of completions, piece by piece, ascending within a piece.
    """
    groups: list[tuple[int, list[int]]] = []
    for p in sorted(set(prompt_index)):
        members = [n for n, owner in enumerate(prompt_index) if owner == p]
        parts = _first_fit([(completions[n], [n]) for n in members], budget - prompts[p])
        groups += [(prompts[p] + sum(completions[n] for n in part), part) for part in parts]
    return [sorted(rows) for rows in _first_fit(groups, budget)]


def plan_padded(
    prompts: Sequence[int], completions: Sequence[int], prompt_index: Sequence[int], budget: int
) -> list[list[int]]:
    """Fills tables of padded rows, one a completion, up to a budget of tokens, padding included; as `plan_shared`."""
    lengths = [prompts[p] + length for p, length in zip(prompt_index, completions, strict=True)]
    pieces: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if pieces and (len(pieces[-1]) + 1) * lengths[pieces[-1][0]] <= budget:
            pieces[-1].append(row)
        else:
            pieces.append([row])
    return [sorted(piece) for piece in pieces]


def _first_fit(items: Sequence[tuple[int, list[int]]], capacity: int) -> list[list[int]]:
    """Puts (size, members) into bins, largest first, each into the first bin with room; an oversized one is alone."""
    room: list[int] = []
    bins: list[list[int]] = []
    for size, members in sorted(items, key=lambda item: -item[0]):
        place = next((i for i, left in enumerate(room) if size <= left), None)
        if place is None:
            room.append(capacity - size)
            bins.append(list(members))
        else:
            room[place] -= size
            bins[place] += members
    return bins
