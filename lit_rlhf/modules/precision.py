"""Which precision is fast on this machine: CPUs differ in it by factors, both ways."""

from __future__ import annotations

import math
import time
from typing import Literal

import torch

Precision = Literal["bf16-mixed", "32-true"]

# bf16 saves memory, too: float32 must be clearly faster to be taken.
_CLEARLY = 1.2
_SIZE = 1024
_NUM_TURNS = 12
# A first look at products this small tells types apart that differ by more than this factor: a
# CPU without the instructions needs 1.6 s for each of the larger ones.
_SMALL_SIZE = 128
_HOPELESS = 8


def choose_precision() -> Precision:
    """Return "32-true" on a CPU that multiplies float32 clearly faster than bf16, else bf16.

    Some CPUs multiply bf16 at three times the rate of float32, others at half of it, and those
    without its instructions slower still.
    """
    if torch.cuda.is_available():
        return "bf16-mixed"
    float32, bfloat16 = _small_rates()
    if float32 < _HOPELESS * bfloat16:
        float32, bfloat16 = product_rates(torch.float32, torch.bfloat16)
    return "32-true" if float32 > _CLEARLY * bfloat16 else "bf16-mixed"


def slowness_of(precision: object, device_type: str) -> str | None:
    """Say that a CPU computes many times slower in bf16 than it would in float32.

    Args:
        precision: the Trainer's.
        device_type: where it computes.

    Returns:
        The warning, or None where there is nothing to warn of.
    """
    if precision != "bf16-mixed" or device_type != "cpu":
        return None
    float32, bfloat16 = _small_rates()
    if float32 < _HOPELESS * bfloat16:
        return None
    return (
        f"trainer.precision bf16-mixed: this CPU has no instructions for it and multiplies small "
        f"matrices at {bfloat16 / 1e9:.0f} GFLOP/s, in float32 at {float32 / 1e9:.0f}; "
        "take --trainer.precision 32-true"
    )


def _small_rates() -> list[float]:
    return product_rates(torch.float32, torch.bfloat16, size=_SMALL_SIZE)


def product_rates(*dtypes: torch.dtype, size: int = _SIZE) -> list[float]:
    """Measure matrix products on the CPU, by turns: the best rate of each type.

    The best, as all that disturbs a product (threads that start, pages touched first, other
    programs) makes it slower.

    Args:
        dtypes: of the products.
        size: of the square matrices.

    Returns:
        Operations per second.
    """
    # Nothing is drawn: a run's random numbers must not depend on whether its machine was measured.
    factors = torch.ones(2, size, size)
    cases = [(factors.to(dtype), torch.empty(size, size, dtype=dtype)) for dtype in dtypes]
    seconds = [math.inf] * len(cases)
    for _ in range(_NUM_TURNS):
        for index, ((left, right), product) in enumerate(cases):
            start = time.perf_counter()
            torch.mm(left, right, out=product)
            seconds[index] = min(seconds[index], time.perf_counter() - start)
    return [2 * size**3 / fastest for fastest in seconds]


def autocast(precision: Precision) -> torch.autocast:
    """Return the autocast that the Trainer would use under `precision`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16-mixed")
