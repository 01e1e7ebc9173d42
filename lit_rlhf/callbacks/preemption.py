"""Signals that ask a run to end: they are noted, and the run ends itself at a good moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_AGAIN_S = 2.0  # a second Ctrl+C so long after the first is meant; launchers repeat it at once


class SignalWatch:
    """Notes the first signal that asks the process to end.

    Lightning's own handler of SIGTERM talks to the other ranks from within the signal, where they
    may be in the middle of something else; this one talks to nobody.

    Attributes:
        received: the signal, None before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    @property
    def name(self) -> str:
        """The signal's name; where only another rank received it, what it most likely is."""
        return (self.received or signal.SIGTERM).name

    @property
    def status(self) -> int:
        """The exit status of a process that the signal ended."""
        return 128 + (self.received or signal.SIGTERM)

    def install(self) -> None:
        """Listen, in the main thread; a signal that somebody ignores or handles is left alone.

        Those are SIGHUP under `nohup` and SIGUSR1 under Slurm's requeueing. SIGTERM is taken from
        Lightning.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        defaults = (signal.SIG_DFL, signal.default_int_handler)
        for number in _SIGNALS:
            if number == signal.SIGTERM or signal.getsignal(number) in defaults:
                self._before[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        """Give the signals back to who had them."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), now
            os.write(2, f"lit-rlhf: {self.name}: this batch is finished and saved\n".encode())
        elif number == self.received == signal.SIGINT and now - self._received_at > _AGAIN_S:
            raise KeyboardInterrupt
