"""How a rollout is cut into minibatches and micro-batches, the same in every forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.batches import cut_by_tokens
from lit_rlhf.errors import ConfigError


@dataclass(frozen=True)
class UpdatePlan:
    """Which rows of this process each optimizer step sees, fixed before the first forward.

    The old log-probabilities are computed in the very micro-batches of the first epoch: same
    rows, same order, same packing, hence the same kernels and sums, so that the ratio of the
    first minibatch is one to the last bit, in bf16, too (detail U6 of the field).

    Attributes:
        epochs: for each epoch its minibatches, for each minibatch its micro-batches, for each
            micro-batch the row indices `[b]`. Every process has as many micro-batches, since they
            compute together; one of them may be empty where a process has fewer rows.
    """

    epochs: list[list[list[Tensor]]]

    @property
    def minibatches(self) -> list[list[Tensor]]:
        """Those of all epochs, in order: one for each optimizer step."""
        return [minibatch for epoch in self.epochs for minibatch in epoch]


class TokenLimit(NamedTuple):
    """How many tokens a micro-batch may have.

    Attributes:
        tokens: at most; a longer row is by itself.
        lengths: of each process the tokens of its rows.
        padded: count each row as long as the longest of its micro-batch.
    """

    tokens: int
    lengths: Sequence[Sequence[int]]
    padded: bool


def plan_update(  # noqa: PLR0913 - settings, given by keyword
    num_prompts: int,
    *,
    num_epochs: int,
    num_minibatches: int,
    micro_batch_size: int | None,
    token_limit: TokenLimit | None = None,
    seed: int,
    samples_per_prompt: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> UpdatePlan:
    """Draw the plan of an update; which responses share a step does not depend on the processes.

    Prompts are dealt out to the processes in turn, as `TrainingLoader` does: prompt `i` of process
    `rank` is number `i * world_size + rank` of all. The samples of a prompt are together.

    Args:
        num_prompts: of the rollout, over all processes.
        num_epochs: passes over the rollout.
        num_minibatches: optimizer steps in an epoch; responses are spread evenly over them.
        micro_batch_size: rows in one forward of a process, None for whole minibatches.
        token_limit: of its tokens, None for any number.
        seed: of the permutations, the same on every process.
        samples_per_prompt: `K`.
        rank: this process.
        world_size: number of processes.

    Returns:
        The plan: exactly `num_epochs * num_minibatches` steps.

    Raises:
        ConfigError: there are fewer responses than minibatches, so that a step would have none.
    """
    num_responses = num_prompts * samples_per_prompt
    if num_responses < num_minibatches:
        raise ConfigError(
            f"a rollout of {num_responses} responses over all processes cannot fill "
            f"{num_minibatches} minibatches: lower num_minibatches, or roll out more prompts or "
            "samples"
        )
    # Sample k of prompt g is number k * num_prompts + g: the process is that number's remainder.
    numbers = torch.arange(num_responses)
    prompt, sample = numbers % num_prompts, numbers // num_prompts
    row = prompt // world_size * samples_per_prompt + sample  # in the process that has it
    generator = torch.Generator().manual_seed(seed)
    epochs = []
    for _ in range(num_epochs):
        minibatches = []
        for members in _draw_minibatches(num_responses, num_minibatches, generator):
            owner = prompt[members] % world_size
            shares = [row[members[owner == one]].sort().values for one in range(world_size)]
            parts = [
                _micro_batches(share, micro_batch_size, token_limit, one)
                for one, share in enumerate(shares)
            ]
            num_empty = max(map(len, parts)) - len(parts[rank])
            minibatches.append(parts[rank] + [shares[rank][:0]] * num_empty)
        epochs.append(minibatches)
    return UpdatePlan(epochs)


def _draw_minibatches(
    num_responses: int, num_minibatches: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Cut `range(num_responses)` at random into parts whose sizes differ by one at most.

    With `S` responses in a part, each takes one of every class of numbers that are equal modulo
    `S`. So the processes have equal shares in each part wherever their number divides `S`, and
    yet nothing here knows how many there are.
    """
    part_of = torch.empty(num_responses, dtype=torch.int64)
    size = num_responses // num_minibatches
    is_extra = torch.zeros(num_responses, dtype=torch.bool)
    for first in range(size):
        members = torch.arange(first, num_responses, size)
        order = torch.randperm(len(members), generator=generator)
        part_of[members] = order
        is_extra[members] = order >= num_minibatches
    # Fewer than there are parts: each goes to a part of its own.
    spare = torch.randperm(num_minibatches, generator=generator)
    part_of[is_extra] = spare[: int(is_extra.sum())]
    for part in range(num_minibatches):
        yield (part_of == part).nonzero().squeeze(-1)


def _micro_batches(
    rows: Tensor, max_rows: int | None, limit: TokenLimit | None, rank: int
) -> list[Tensor]:
    """Split a process's rows into as few micro-batches as their limits allow."""
    if limit is None:
        parts = cut_by_tokens([0] * len(rows), max_rows, None)
    else:
        lengths = [limit.lengths[rank][row] for row in rows.tolist()]
        parts = cut_by_tokens(lengths, max_rows, limit.tokens, padded=limit.padded)
    return [rows[part] for part in parts] or [rows]
