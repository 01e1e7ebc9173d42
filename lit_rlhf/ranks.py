"""Numbers of all processes as one; a process without others is its own sum.

All but `rank` and `world_size` are called on all processes.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, distributed

Value = TypeVar("Value")


def rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if _has_group() else 0


def world_size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if _has_group() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """Add a tensor up over all processes, without gradient; it is on the backend's device."""
    if world_size() == 1:
        return values
    total = values.detach().clone()
    distributed.all_reduce(total)
    return total


def largest_over_ranks(value: float, device: torch.device) -> float:
    """Return the largest value of all processes."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    return float(largest)


def any_rank(claim: bool, device: torch.device) -> bool:
    """Return whether a claim holds on any process."""
    return largest_over_ranks(float(claim), device) > 0


def from_rank_zero(value: Value) -> Value:
    """Return what rank zero has, whatever the others have."""
    values = [value]
    if world_size() > 1:
        distributed.broadcast_object_list(values, src=0)
    return values[0]


def of_all_ranks(value: Value) -> list[Value]:
    """Return what each process has, in their order."""
    if world_size() == 1:
        return [value]
    values: list[Value] = [value] * world_size()
    distributed.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Return once all processes have come here."""
    if _has_group():
        distributed.barrier()


def _has_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()
