"""What SIGTERM asks of a run: a checkpoint, and an end within seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from lit_rlhf.errors import Preempted


class SigtermWatch:
    """Notes SIGTERM, and ends the process if the run does not do so in time.

    Lightning's own handler talks to the other ranks from within the signal, where they may be in
    the middle of something else; this one talks to nobody. Ranks agree at the end of a batch.

    Args:
        grace_s: seconds from the signal until the process ends itself, saved or not.
        on_signal: called from the handler, in the main thread; may raise.
        last_words: what to say on ending without a checkpoint of this moment.

    Attributes:
        has_fired: the signal was received.
    """

    def __init__(
        self, grace_s: float, on_signal: Callable[[], None], last_words: Callable[[], str]
    ) -> None:
        self._grace_s = grace_s
        self._on_signal = on_signal
        self._last_words = last_words
        self._timer: threading.Timer | None = None
        self.has_fired = False

    def install(self) -> None:
        """Take the signal over; Lightning gives it back when the fit ends. Main thread only."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handle)

    def stand_down(self) -> None:
        """Stop the clock: the run is about to save and to end by itself."""
        if self._timer is not None:
            self._timer.cancel()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.has_fired:  # launchers and clusters send it more than once
            return
        self.has_fired = True
        self._timer = threading.Timer(self._grace_s, self._give_up)
        self._timer.daemon = True
        self._timer.start()
        self._on_signal()

    def _give_up(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"lit-rlhf: {self._last_words()}\n")
            sys.stderr.flush()
        os._exit(Preempted.STATUS)
