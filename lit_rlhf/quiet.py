"""Only our own log lines: what other packages say on every run, and no user can change."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

# Their warnings are of libraries that are missing, or of their own old names.
_SILENT_LOGGERS = ("torchao", "torch.utils._pytree")
_LIGHTNINGS_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.fabric.utilities.seed",
)
_REPEATED = (
    "Found .* module.s. in eval mode",  # the frozen reference is meant to be
    "LightningCLI's args parameter",
    "The number of training batches",
    "The .*dataloader.* does not have many workers",
    "Checkpoint directory .* exists and is not empty",
    "Using ModelCheckpoint with manual optimization",
    "You're using the WeightAveraging callback with a model that overrides",
    "Starting from v1.9.0, `tensorboardX`",
    ".*weights_only",
    # Of held-out metrics, which are of all processes before they are logged.
    r"It is recommended to use `self\.log\('(val|test)/",
)
_OURS = str(Path(__file__).parent)


def quieten() -> None:
    """Leave out what others say on every run; errors and warnings of this package stay."""
    for name in _SILENT_LOGGERS:
        logging.getLogger(name).addFilter(_is_an_error)
    for name in _LIGHTNINGS_LOGGERS:
        logging.getLogger(name).addFilter(_is_ours_or_a_warning)
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    for message in _REPEATED:
        warnings.filterwarnings("ignore", message=message)


def _is_an_error(record: logging.LogRecord) -> bool:
    """Tell whether a log line is an error."""
    return record.levelno >= logging.ERROR


def _is_ours_or_a_warning(record: logging.LogRecord) -> bool:
    """Tell whether a line that passes through Lightning's logger is ours, or a warning."""
    return record.levelno >= logging.WARNING or record.pathname.startswith(_OURS)
