"""What a process computes with where it has no rows of its own in a micro-batch.

Processes that share gradients or weights compute together, so each of them has to take part: it
takes the first row of its rollout, with no token that counts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lit_rlhf.batches import TokenRows, cut_by_tokens
from lit_rlhf.modules.ppo_update import UpdateTargets
from lit_rlhf.ranks import largest_over_ranks


def select_rows(rows: TokenRows, indices: Tensor) -> TokenRows:
    """Return the rows of a micro-batch `[b]`; of an empty one, a stand-in."""
    if len(indices) == 0:
        return rows.select(indices.new_zeros(1)).silenced()
    return rows.select(indices)


def score_in_parts(
    rows: TokenRows,
    compute: Callable[[TokenRows], Tensor],
    *,
    max_rows: int | None,
    max_tokens: int | None,
) -> Tensor:
    """Score rows in forwards of a limited size, as many on all processes.

    Args:
        rows: `B` rows, one or more.
        compute: rows -> `[b, ...]` numbers.
        max_rows: in one forward, None for any number.
        max_tokens: likewise.

    Returns:
        `[B, ...]`.
    """
    places = torch.arange(len(rows.lengths), device=rows.lengths.device)
    if max_rows is None and max_tokens is None:
        return compute(rows)
    parts = [places[part] for part in cut_by_tokens(rows.lengths.tolist(), max_rows, max_tokens)]
    num_parts = int(largest_over_ranks(len(parts), rows.lengths.device))
    for _ in range(num_parts - len(parts)):
        parts.append(places[:0])
    scores = [(part, compute(select_rows(rows, part))) for part in parts]
    return torch.cat([score for part, score in scores if len(part)])


def select_targets(targets: UpdateTargets, indices: Tensor) -> UpdateTargets:
    """Return the targets of a micro-batch's rows `[b]`, as `select_rows` does."""
    rows = select_rows(targets.rows, indices)
    if len(indices) == 0:
        nothing = torch.zeros_like(targets.response_mask)
        targets, indices = targets._replace(response_mask=nothing), indices.new_zeros(1)
    others = (None if tensor is None else tensor[indices] for tensor in targets[1:])
    return UpdateTargets(rows, *others)  # type: ignore[arg-type]  # as it was
