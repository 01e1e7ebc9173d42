"""Which of the responses answer the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from lit_rlhf.batches import SampleBatch
from lit_rlhf.prompts import Prompt


def group_ids_of(prompts: Sequence[Prompt], batch: SampleBatch | None) -> Tensor:
    """Return `[B]` int64, equal for samples of the same prompt.

    Of texts alone, neighbours with equal prompts are samples of the same one.
    """
    if batch is not None:
        return batch.group_ids
    sizes = [len(list(equal)) for _, equal in groupby(prompts)]
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.long))


def rows_by_prompt(prompts: Sequence[Prompt], batch: SampleBatch | None) -> list[list[int]]:
    """Return the rows of each prompt's samples, in the order of the prompts."""
    rows: dict[int, list[int]] = {}
    for row, group in enumerate(group_ids_of(prompts, batch).tolist()):
        rows.setdefault(group, []).append(row)
    return list(rows.values())
