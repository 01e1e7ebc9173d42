"""The callbacks that a Trainer has."""

from __future__ import annotations

from typing import TypeVar

from lightning.pytorch import Callback, Trainer

Kind = TypeVar("Kind", bound=Callback)


def callbacks_of(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """Return the callbacks of a class, or of one under it."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it
    return [one for one in callbacks if isinstance(one, kind)]
