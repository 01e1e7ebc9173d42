"""Callbacks that watch a metric: a misspelt name is told before training, not after an epoch."""

from __future__ import annotations

from difflib import get_close_matches

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lit_rlhf.errors import ConfigError


def refuse_unknown_monitors(trainer: Trainer) -> None:
    """Refuse a callback whose `monitor` is not among the metrics of the first validation.

    Metrics of training are not known yet, and left alone.

    Raises:
        ConfigError: a callback watches a metric that there is not.
    """
    known = sorted(trainer.callback_metrics)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it
        if not isinstance(callback, EarlyStopping | ModelCheckpoint):
            continue
        monitor = callback.monitor
        if monitor is None or monitor in known or monitor.startswith("train/"):
            continue
        near = get_close_matches(monitor, known, n=1)
        meant = f"did you mean '{near[0]}'" if near else f"there are: {', '.join(known)}"
        raise ConfigError(
            f"trainer.callbacks: {type(callback).__name__} monitors '{monitor}', and validation "
            f"has no such metric; {meant}"
        )
