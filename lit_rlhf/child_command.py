"""A command of `lit-rlhf` in a process of its own, which ends with the process that started it.

`python -m lit_rlhf.child_command sft fit ...` is `lit-rlhf sft fit ...`, but for its standard
input: whoever starts it holds the other end, and when that is closed, be it by SIGKILL, the command
ends. `run_command` starts it so.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from lit_rlhf.errors import TrainingError

# `ru_maxrss` is in KiB on Linux and in bytes on macOS.
_RSS_PER_GIB = 2**30 if sys.platform == "darwin" else 2**20


class Usage(NamedTuple):
    """What a command took: seconds, and its largest resident memory."""

    seconds: float
    peak_memory_gib: float


def run_command(title: str, words: Sequence[str]) -> Usage:
    """Run a command to its end.

    Args:
        title: names it in errors.
        words: those after `lit-rlhf`.

    Raises:
        TrainingError: it failed, and has said why, or it was killed.
    """
    start = time.monotonic()
    command = [sys.executable, "-m", "lit_rlhf.child_command", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode < 0:
        raise TrainingError(
            f"{title}: its process was killed by signal {-process.returncode}; if the system ran "
            "out of memory, free some and start again"
        )
    if process.returncode:
        raise TrainingError(f"{title}: its command failed, see above")
    memory = round(usage.ru_maxrss / _RSS_PER_GIB, 2)
    return Usage(round(time.monotonic() - start, 1), memory)


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the other end is closed
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runpy.run_module("lit_rlhf", run_name="__main__")
