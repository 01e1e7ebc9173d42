"""What the processes of a run agree on."""

from __future__ import annotations

from lightning.pytorch import Trainer


def any_rank(trainer: Trainer, claim: bool) -> bool:
    """Return whether a claim holds on any process, the same on all; call it on all of them."""
    return bool(trainer.strategy.reduce_boolean_decision(claim, all=False))
