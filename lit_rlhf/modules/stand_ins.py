"""What a process computes with where it has no rows of its own in a micro-batch.

Processes that share gradients or weights compute together, so each of them has to take part: it
takes the first row of its rollout, with no token that counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_rlhf.batches import TokenRows
from lit_rlhf.modules.ppo_update import UpdateTargets


def select_rows(rows: TokenRows, indices: Tensor) -> TokenRows:
    """Return the rows of a micro-batch `[b]`; of an empty one, a stand-in."""
    if len(indices) == 0:
        return rows.select(indices.new_zeros(1)).silenced()
    return rows.select(indices)


def select_targets(targets: UpdateTargets, indices: Tensor) -> UpdateTargets:
    """Return the targets of a micro-batch's rows `[b]`, as `select_rows` does."""
    rows = select_rows(targets.rows, indices)
    if len(indices) == 0:
        nothing = torch.zeros_like(targets.response_mask)
        targets, indices = targets._replace(response_mask=nothing), indices.new_zeros(1)
    others = (None if tensor is None else tensor[indices] for tensor in targets[1:])
    return UpdateTargets(rows, *others)  # type: ignore[arg-type]  # as it was
