"""Waiting for other processes: for what they do, and for their end."""

import time
from pathlib import Path


def has_ended(pid: int) -> bool:
    """Tell whether a process is gone, or waits as a zombie for somebody to ask for its end."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def wait_for(condition, seconds: float = 120):
    """Return what a condition gives as soon as it is true, or its last answer after the time."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return found
