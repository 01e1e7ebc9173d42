"""Errors that a user can cause and correct: each message names what, where and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class LitRLHFError(Exception):
    """The common ancestor: the command line prints these as one message, without a traceback."""


class ConfigError(LitRLHFError, ValueError):
    """A setting is missing, contradictory or out of range."""


class DataError(LitRLHFError, ValueError):
    """A row, a file or a folder of data is not what was expected."""


class CheckpointError(LitRLHFError, ValueError):
    """A checkpoint or model folder is missing, torn, or made for another phase."""


class DownloadError(LitRLHFError, RuntimeError):
    """Something could not be fetched, or arrived with the wrong checksum."""


class TrainingError(LitRLHFError, RuntimeError):
    """A check on the run itself failed: what was measured makes no sense, so it stops."""


class RewardError(TrainingError):
    """A reward or a judge failed; the run's state is saved, and it can go on once it is mended."""


class Preempted(SystemExit):
    """A run was asked to end by a signal and left a checkpoint to go on from.

    Attributes:
        code: the exit status, that of a process which the signal ended: 143 for SIGTERM. It is 0
            on all ranks but the first, so that no launcher takes their end for a crash.
        message: what was saved, and how to go on.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(status)
        self.message = message


@contextmanager
def about_setting(key: str) -> Iterator[None]:
    """Say which setting an error is about.

    Args:
        key: its dotted name, as a user writes it.

    Raises:
        ConfigError: inside, what the setting names was not there or not as expected.
    """
    try:
        yield
    except LitRLHFError as error:
        raise ConfigError(f"{key}: {error}") from error
