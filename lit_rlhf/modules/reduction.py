"""When processes add up their gradients: once a step, not at each of its backward passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import LightningModule
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def reduces_gradients(module: LightningModule, *, is_last: bool) -> Iterator[None]:
    """Run a backward pass of manual optimization; under ddp, talk to nobody before the last one.

    Sharded gradients (fsdp2) are added up each time: kept whole until the last one, they would take
    the memory that sharding saves.

    Args:
        module: attached to a Trainer.
        is_last: no other backward pass is before the optimizer's step.
    """
    model = module.trainer.strategy.model
    if isinstance(model, DistributedDataParallel) and not is_last:
        with model.no_sync():
            yield
    else:
        yield
