"""Intervals by resampling prompts: for means, shares, ratios and any function of weighted sums.

What belongs to one prompt is resampled together, so that two policies are compared on the same
prompts and several samples or pairs of one prompt do not pass for independent ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from lit_rlhf.errors import DataError

Floats = npt.NDArray[np.float64]

NUM_RESAMPLES = 2_000
CONFIDENCE = 0.95

_MAX_DRAWS_AT_ONCE = 1 << 21  # bounds the memory to some 50 MB

# How often each unit counts in each resample, `[R, n]`, to the statistic of each, `[R]`.
Statistic = Callable[[Floats], Floats]


class Estimate(NamedTuple):
    """A value and the interval that holds it with a confidence of 95 %.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: upper end.
        n: sample size behind it.
    """

    value: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, Any]:
        """Return plain values; what is not a number becomes null."""
        ends = {name: finite_or_none(getattr(self, name)) for name in ("value", "low", "high")}
        return {**ends, "n": self.n}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Estimate:
        """Read what `as_json` returned; null becomes no number again."""
        value, low, high = (
            math.nan if row[name] is None else row[name] for name in ("value", "low", "high")
        )
        return cls(value, low, high, row["n"])


def finite_or_none(value: float) -> float | None:
    """Return a value that JSON has."""
    return float(value) if math.isfinite(value) else None


def bootstrap(
    statistic: Statistic,
    num_units: int,
    *,
    n: int | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Estimate a statistic of weighted units, with the interval of the bootstrap over them.

    The percentiles are expanded for few units: the ends are at the probabilities
    `Phi(-+ sqrt(n / (n - 1)) t)` with Student's quantile `t` at `n - 1` degrees of freedom, where
    plain percentiles would be too narrow. Source: Hesterberg, What Teachers Should Know About the
    Bootstrap, The American Statistician 69, 2015, section 3.1 ("expanded percentile interval").
    Resamples whose statistic is NaN (nothing in them counted) are left out.

    Args:
        statistic: from `[R, num_units]` counts to `[R]` values.
        num_units: what is resampled: prompts.
        n: sample size to state with the estimate; the units if None.
        num_resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        The statistic with every unit counted once, and its interval; the ends are NaN for a
        single unit, which says nothing about its spread.

    Raises:
        DataError: there is no unit.
    """
    if num_units < 1:
        raise DataError("an estimate needs at least one prompt")
    n = num_units if n is None else n
    value = float(statistic(np.ones((1, num_units)))[0])
    if num_units == 1 or math.isnan(value):
        return Estimate(value, math.nan, math.nan, n)
    random = np.random.default_rng(seed)
    block = max(1, _MAX_DRAWS_AT_ONCE // num_units)
    values = np.concatenate(
        [
            statistic(_counts(random, min(block, num_resamples - done), num_units))
            for done in range(0, num_resamples, block)
        ]
    )
    t = special.stdtrit(num_units - 1, (1 + CONFIDENCE) / 2)
    tail = special.ndtr(-math.sqrt(num_units / (num_units - 1)) * t)
    low, high = np.quantile(values[np.isfinite(values)], [tail, 1 - tail])
    return Estimate(value, float(low), float(high), n)


def mean(values: npt.ArrayLike, *, n: int | None = None, seed: int = 0) -> Estimate:
    """Estimate the mean of one value a prompt.

    Args:
        values: `[P]`, finite.
        n: sample size to state; `P` if None.
        seed: of the resampling.

    Raises:
        DataError: there is no value, or one is not finite.
    """
    column = _finite(values)
    return bootstrap(lambda counts: counts @ column / column.size, column.size, n=n, seed=seed)


def ratio(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    *,
    n: int | None = None,
    seed: int = 0,
) -> Estimate:
    """Estimate `sum(numerators) / sum(denominators)`: a mean over tokens, say, of whole prompts.

    Args:
        numerators: `[P]` sums, one a prompt.
        denominators: `[P]` what they are sums over, 0 or more.
        n: sample size to state; `P` if None.
        seed: of the resampling.

    Returns:
        The ratio; NaN where nothing counts.

    Raises:
        DataError: there is no prompt, lengths differ, or a value is not finite.
    """
    above, below = _finite(numerators), _finite(denominators)
    if above.shape != below.shape:
        raise DataError(f"{above.size} numerators and {below.size} denominators")

    def statistic(counts: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return counts @ above / (counts @ below)

    return bootstrap(statistic, above.size, n=n, seed=seed)


def share(
    outcomes: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    n: int | None = None,
    seed: int = 0,
) -> Estimate:
    """Estimate a share of outcomes in [0, 1], a win rate or an accuracy.

    As `ratio`, but where every outcome is 0 (or every one is 1), and resampling would call that
    certain, the interval is Wilson's with the number of prompts that count: of 20 wins in 20 it
    leaves 84 % to 100 %. Source: E. B. Wilson, JASA 22, 1927.

    Args:
        outcomes: `[P]` mean outcome of each prompt.
        weights: `[P]` how much each prompt counts; alike if None.
        n: sample size to state; `P` if None.
        seed: of the resampling.

    Raises:
        DataError: as for `ratio`, or an outcome is not in [0, 1].
    """
    outcome = _finite(outcomes)
    weight = np.ones(outcome.size) if weights is None else _finite(weights)
    if ((outcome < 0) | (outcome > 1)).any():
        raise DataError("outcomes of a share must be in [0, 1]")
    estimate = ratio(outcome * weight, weight, n=n, seed=seed)
    num_counted = int((weight > 0).sum())
    if num_counted == 0 or estimate.value not in (0.0, 1.0):
        return estimate
    test = stats.binomtest(round(estimate.value * num_counted), num_counted)
    low, high = test.proportion_ci(CONFIDENCE, method="wilson")
    return estimate._replace(low=float(low), high=float(high))


def cluster_sums(values: npt.ArrayLike, clusters: npt.ArrayLike, num_clusters: int) -> Floats:
    """Add values up by the prompt that they belong to.

    Args:
        values: `[M]` or `[M, k]`.
        clusters: `[M]` prompt of each, from 0.
        num_clusters: `P`.

    Returns:
        `[P]` or `[P, k]` sums.
    """
    column = np.asarray(values, np.float64)
    sums = np.zeros((num_clusters, *column.shape[1:]))
    np.add.at(sums, np.asarray(clusters, np.int64), column)
    return sums


def _counts(random: np.random.Generator, num_resamples: int, num_units: int) -> Floats:
    """Draw how often each unit is in each resample: `[R, n]`."""
    draws = random.integers(num_units, size=(num_resamples, num_units))
    draws += np.arange(num_resamples)[:, None] * num_units
    flat = np.bincount(draws.ravel(), minlength=num_resamples * num_units)
    return flat.reshape(num_resamples, num_units).astype(np.float64)


def _finite(values: npt.ArrayLike) -> Floats:
    column = np.asarray(values, np.float64)
    if column.ndim != 1 or column.size == 0 or not np.isfinite(column).all():
        raise DataError(
            f"values of shape {column.shape}: expected one finite number a prompt, at least one"
        )
    return column
