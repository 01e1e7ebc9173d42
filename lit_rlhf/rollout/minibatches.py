"""How a rollout is cut into minibatches and micro-batches, the same at every look."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigError


@dataclass(frozen=True)
class UpdatePlan:
    """Which rows each optimizer step sees, epoch by epoch, fixed before the first forward.

    The old log-probabilities are computed in the very micro-batches of the first epoch: same
    rows, same order, same packing, hence the same kernels and sums, so that the ratio of the
    first minibatch is one to the last bit, in bf16, too (detail U6 of the field).

    Attributes:
        epochs: for each epoch its minibatches, for each minibatch its micro-batches, for each
            micro-batch the row indices `[b]`.
    """

    epochs: list[list[list[Tensor]]]

    @property
    def starts_with_all_rows(self) -> bool:
        """Whether the first step takes the whole rollout in one forward."""
        return self.starts_with_one_step and len(self.epochs[0][0]) == 1

    @property
    def starts_with_one_step(self) -> bool:
        """Whether the first step takes the whole rollout, in however many forwards."""
        return len(self.epochs[0]) == 1

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole update: epochs times minibatches."""
        return sum(len(epoch) for epoch in self.epochs)


def plan_update(
    num_rows: int,
    *,
    num_epochs: int,
    num_minibatches: int,
    micro_batch_size: int | None,
    seed: int,
) -> UpdatePlan:
    """Draw the plan of an update.

    Args:
        num_rows: rows of this process.
        num_epochs: passes over the rollout.
        num_minibatches: optimizer steps in an epoch; rows are spread evenly over them.
        micro_batch_size: rows in one forward, None for whole minibatches.
        seed: of the permutations.

    Returns:
        The plan: exactly `num_epochs * num_minibatches` steps.

    Raises:
        ConfigError: there are fewer rows than minibatches, so that a step would have none.
    """
    if num_rows < num_minibatches:
        raise ConfigError(
            f"a rollout of {num_rows} rows in this process cannot fill {num_minibatches} "
            "minibatches: lower num_minibatches, or roll out more prompts or samples"
        )
    generator = torch.Generator().manual_seed(seed)
    epochs = []
    for _ in range(num_epochs):
        order = torch.randperm(num_rows, generator=generator)
        minibatches = order.tensor_split(num_minibatches)
        epochs.append([list(rows.split(micro_batch_size or num_rows)) for rows in minibatches])
    return UpdatePlan(epochs)
