"""Loggers that fail are reported and left behind: what a run learns is worth more than its log."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch.loggers import Logger

# What Lightning and our callbacks call while a run goes on; a logger may have more.
_METHODS = (
    "log_metrics",
    "log_hyperparams",
    "log_graph",
    "log_table",
    "save",
    "after_save_checkpoint",
    "finalize",
)
_REPORTED_AGAIN_AFTER = 100


def guard_loggers(loggers: Iterable[Logger]) -> None:
    """Let a run go on when a logger raises, in place; the first error and every 100th is reported.

    Creating the logger's run (wandb's `init`) is not guarded: that is before training, where an
    error costs nothing and can be mended.

    Args:
        loggers: of a Trainer.
    """
    for logger in loggers:
        report = _Reports(type(logger).__name__)
        for name in _METHODS:
            method = getattr(logger, name, None)
            if method is not None:
                setattr(logger, name, _guarded(method, report))


class _Reports:
    def __init__(self, logger_name: str) -> None:
        self._logger_name = logger_name
        self._num_errors = 0

    def __call__(self, method_name: str, error: Exception) -> None:
        self._num_errors += 1
        if self._num_errors % _REPORTED_AGAIN_AFTER == 1:
            warnings.warn(
                f"{self._logger_name}.{method_name} failed: {type(error).__name__}: {error}. "
                f"Training goes on without what it should have logged (error {self._num_errors})",
                stacklevel=3,
            )


def _guarded(method: Callable[..., Any], report: _Reports) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the method's own
        try:
            return method(*args, **kwargs)
        except Exception as error:
            report(method.__name__, error)
            return None

    return call
