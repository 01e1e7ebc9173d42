"""One side of a benchmark lets itself be stepped: it waits for "go", works, and reports.

Standard library alone, as it also runs in the peers' environments. The protocol: the runner writes
a line "go" to the side's standard input for each round, and closes it at the end; the side writes
one JSON object a line. What the libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TextIO


class Gate:
    """The side's end of the two pipes."""

    def __init__(self) -> None:
        # The libraries print to standard output: give them standard error instead.
        self._reports: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._start = 0.0

    def wait(self) -> bool:
        """Wait for the next round; False when there is none."""
        is_going = sys.stdin.readline().strip() == "go"
        self._start = time.perf_counter()
        return is_going

    def report(self, **facts: float) -> None:
        """Send the seconds since the round began, the largest memory so far, and other facts."""
        seconds = time.perf_counter() - self._start
        line = json.dumps({"seconds": seconds, "peak_gib": _peak_gib(), **facts})
        self._reports.write(line + "\n")
        self._reports.flush()


def _peak_gib() -> float:
    # Not getrusage's: a new process starts with the largest memory of the one that started it.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 2**20
