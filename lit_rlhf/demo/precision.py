"""Which precision is fast on this machine: CPUs differ in it by factors, both ways."""

from __future__ import annotations

import statistics
import time
from typing import Literal

import torch

Precision = Literal["bf16-mixed", "32-true"]

# bf16 saves memory, too: float32 must be clearly faster to be taken.
_CLEARLY = 1.2
_SIZE = 1024
_NUM_PRODUCTS = 5


def choose_precision() -> Precision:
    """Return "32-true" on a CPU that multiplies float32 clearly faster than bf16, else bf16.

    Some CPUs multiply bf16 at three times the rate of float32, others at half of it, and those
    without its instructions slower still.
    """
    if torch.cuda.is_available():
        return "bf16-mixed"
    is_clear = product_rate(torch.float32) > _CLEARLY * product_rate(torch.bfloat16)
    return "32-true" if is_clear else "bf16-mixed"


def product_rate(dtype: torch.dtype) -> float:
    """Measure matrix products on the CPU: operations per second, the median of a few."""
    left, right = torch.randn(2, _SIZE, _SIZE).to(dtype)
    seconds = []
    for _ in range(1 + _NUM_PRODUCTS):  # the first one warms up
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2 * _SIZE**3 / statistics.median(seconds[1:])


def autocast(precision: Precision) -> torch.autocast:
    """Return the autocast that the Trainer would use under `precision`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16-mixed")
