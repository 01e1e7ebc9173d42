"""Each phase in a process of its own, as when its command is typed."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple, ParamSpec, TypeVar

from lit_rlhf.errors import TrainingError

P = ParamSpec("P")
R = TypeVar("R")

# `ru_maxrss` is in KiB on Linux and in bytes on macOS.
_RSS_PER_GIB = 2**30 if sys.platform == "darwin" else 2**20


class _Finished(NamedTuple):
    result: object
    peak_memory_gib: float


class CleanProcesses:
    """Runs functions one after the other, each in a fresh process that ends with it.

    Memory that a phase's allocator keeps does not add up over the phases, and the peak of each is
    its own. The processes are forked from one that has only imported what they need, so that the
    imports (seconds) are paid once. A process ends when the one that asked for it is killed: none
    goes on writing where the next run of the command writes.

    Args:
        preload: names of the modules to import once.
    """

    def __init__(self, preload: Sequence[str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))

    def run(self, name: str, function: Callable[P, R], *args: P.args) -> tuple[R, float]:  # type: ignore[valid-type]  # keyword arguments are not needed here
        """Call `function(*args)` in a fresh process.

        Args:
            name: of the phase, for the error.
            function: of a module; its arguments and its result are pickled.
            args: what it is called with.

        Returns:
            The result, and the largest resident memory of the process in GiB.

        Raises:
            TrainingError: the process ended without an answer: it was killed.
        """
        try:
            with ProcessPoolExecutor(1, self._context) as executor:
                result, peak_memory_gib = executor.submit(_measured, function, args).result()
        except BrokenProcessPool as error:
            raise TrainingError(
                f"{name}: its process was killed; if the system ran out of memory, "
                "free some and start again"
            ) from error
        return result, peak_memory_gib  # type: ignore[return-value]  # what the function returned


def _measured(function: Callable[..., object], args: tuple[object, ...]) -> _Finished:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    result = function(*args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _RSS_PER_GIB
    return _Finished(result, round(peak, 2))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a process that was started
    parent.join()
    os._exit(1)
