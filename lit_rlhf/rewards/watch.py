"""A call that takes long says so, and one that takes too long ends."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lit_rlhf.errors import RewardError
from lit_rlhf.ranks import rank

_WORD_EVERY_S = 60.0
_AGAIN_S = 1.0  # code that catches everything is told again
_SIGNAL = signal.SIGUSR2  # not SIGALRM, which graders use for limits of their own

_log = logging.getLogger(__name__)


class TimeLimitError(RewardError):
    """A call took longer than its limit."""


class _TimeIsUp(BaseException):
    """Raised inside the call; no Exception, so that `except Exception` there does not keep it."""


@contextmanager
def watched(name: str, limit_s: float | None) -> Iterator[None]:
    """Log each minute that a call is still running, and end it at its limit.

    The call stays in its own thread, with its device, autocast and signal handlers. It is ended by
    a signal, which waits until the interpreter has the thread back: code in C that never returns
    cannot be ended. Outside of the main thread there are words alone.

    Args:
        name: of what is called, for messages.
        limit_s: seconds, or None for no limit.

    Raises:
        TimeLimitError: the limit was reached.
    """
    if threading.current_thread() is not threading.main_thread():
        limit_s = None
    is_done = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if not is_done.is_set():
            raise _TimeIsUp

    before = None if limit_s is None else signal.signal(_SIGNAL, end)
    watch = threading.Thread(target=_watch, args=(name, limit_s, is_done), daemon=True)
    watch.start()
    try:
        yield
    except _TimeIsUp:
        raise TimeLimitError(
            f"{name} has not answered within {limit_s:g} s (timeout_s): raise the limit, or see "
            "what it waits for"
        ) from None
    finally:
        is_done.set()
        watch.join()
        if before is not None:
            signal.signal(_SIGNAL, before)


def _watch(name: str, limit_s: float | None, is_done: threading.Event) -> None:
    start = time.monotonic()
    next_word, end = start + _WORD_EVERY_S, None if limit_s is None else start + limit_s
    while not is_done.wait(max(0.0, min(next_word, end or next_word) - time.monotonic())):
        now = time.monotonic()
        if now >= next_word:
            _log.warning("process %d: %s has been running for %.0f s", rank(), name, now - start)
            next_word = now + _WORD_EVERY_S
        if end is not None and now >= end:
            signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
            end = now + _AGAIN_S
