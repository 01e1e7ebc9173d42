"""Estimates with their uncertainty, from paired samples: one prompt, two policies."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lit_rlhf.errors import DataError

Floats = npt.NDArray[np.float64]

_MAX_DRAWS_AT_ONCE = 1 << 22  # bounds the memory of the bootstrap to some 64 MB


class Estimate(NamedTuple):
    """A value and the interval that holds it with the stated confidence.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: upper end.
        n: number of pairs behind it.
    """

    value: float
    low: float
    high: float
    n: int


def mean_difference(
    after: npt.ArrayLike,
    before: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Estimate how much the mean of `after` is above that of `before`, for the same prompts.

    `mean(after - before)`, with the percentile interval of the bootstrap over pairs. Source:
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Args:
        after: `[n]` scores, one a prompt.
        before: `[n]` scores of the same prompts in the same order.
        confidence: share of intervals that hold the true difference.
        num_resamples: bootstrap samples; 10,000 leave about 1 % noise in the interval's width.
        seed: of the resampling.

    Returns:
        The difference and its interval.

    Raises:
        DataError: the two differ in length, are empty, or hold a value that is not finite.
    """
    differences = np.subtract(*_paired(after, before))
    n = differences.size
    random = np.random.default_rng(seed)
    block = max(1, _MAX_DRAWS_AT_ONCE // n)
    means = np.concatenate(
        [
            differences[random.integers(n, size=(min(block, num_resamples - done), n))].mean(axis=1)
            for done in range(0, num_resamples, block)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(differences.mean()), float(low), float(high), n)


def win_rate(
    scores: npt.ArrayLike,
    opponent_scores: npt.ArrayLike,
    *,
    tie_margin: float = 0.0,
    confidence: float = 0.95,
) -> Estimate:
    """Estimate how often the first response has the higher score; a tie counts half.

    The interval is Wilson's for a share `p` of `n`, `(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2))
    / (1 + z^2/n)`, which unlike the bootstrap does not shrink to a point when one side always
    wins. Ties vary less than wins and losses, so with ties it is a little too wide. Source:
    E. B. Wilson, JASA 22, 1927.

    Args:
        scores: `[n]` scores, one a prompt.
        opponent_scores: `[n]` scores of the opponent's responses to the same prompts.
        tie_margin: scores that are at most this far apart are a tie.
        confidence: share of intervals that hold the true rate.

    Returns:
        The win rate in [0, 1] and its interval.

    Raises:
        DataError: as for `mean_difference`.
    """
    differences = np.subtract(*_paired(scores, opponent_scores))
    outcomes = np.where(np.abs(differences) <= tie_margin, 0.5, differences > 0)
    rate, n = float(outcomes.mean()), outcomes.size
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = rate + z * z / (2 * n)
    spread = z * math.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    # The ends touch 0 and 1 exactly when one side always wins; rounding must not pass them.
    low, high = max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
    return Estimate(rate, low, high, n)


def _paired(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Floats, Floats]:
    pair = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if pair[0].ndim != 1 or pair[0].shape != pair[1].shape or pair[0].size == 0:
        raise DataError(
            f"scores of shapes {pair[0].shape} and {pair[1].shape}: expected two lists of the "
            "same length, one score a prompt, at least one"
        )
    if not all(np.isfinite(scores).all() for scores in pair):
        raise DataError("scores hold a value that is not finite: leave such pairs out, and say so")
    return pair
