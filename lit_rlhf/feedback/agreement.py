"""How far labelers agree, beyond what chance would give.

Judgments come as value counts: `counts[u, v]` says how many labelers gave unit `u` (a task, or one
response of it) the value `values[v]`. That is all that these measures need, it is what one GROUP BY
of the store gives, and units with the same counts can be put together (`Patterns`), so a million
judgments cost what a few hundred do.

A measure that is not defined says why. It is never 1 because all judged alike, nor NaN.

    U  units        V  distinct values        P  distinct patterns of counts
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Level = Literal["nominal", "ordinal", "interval", "ratio"]

NO_OVERLAP = "no two labelers judged the same task"
ALL_ALIKE = "all judged alike, so chance would give the same"
# Of the resamples, so many must be defined for an interval.
_LEAST_DEFINED = 0.5


class Undefined(NamedTuple):
    """A measure that has no value.

    Attributes:
        reason: why, as the end of a sentence that begins with "undefined, because".
    """

    reason: str

    def __str__(self) -> str:
        """Return it as the reports say it."""
        return f"undefined, because {self.reason}"


class Estimate(NamedTuple):
    """A measure with its 95 % bootstrap interval.

    Attributes:
        value: of the units as they are.
        low: the 2.5th percentile over resampled units; None where too few resamples are defined.
        high: the 97.5th percentile, likewise.
    """

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """Return it as the reports say it."""
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Patterns(NamedTuple):
    """Value counts of units, units with equal counts put together.

    Attributes:
        counts: `[P, V]` labelers who gave each value; two or more in each row.
        number: `[P]` units that have these counts.
    """

    counts: Floats
    number: Floats


Measure = Callable[[Patterns], float | Undefined]


def patterns_of(counts: npt.NDArray[np.integer]) -> Patterns:
    """Put units with equal counts together, and leave out those that fewer than two judged.

    Args:
        counts: `[U, V]`.
    """
    judged = counts[counts.sum(axis=1) >= 2]
    if not len(judged):
        return Patterns(np.zeros((0, counts.shape[1])), np.zeros(0))
    distinct, number = np.unique(judged, axis=0, return_counts=True)
    return Patterns(distinct.astype(np.float64), number.astype(np.float64))


def percent_agreement(units: Patterns) -> float | Undefined:
    """Return the mean over units of the share of pairs of labelers who gave the same value."""
    if not units.number.sum():
        return Undefined(NO_OVERLAP)
    judged = units.counts.sum(axis=1)
    agreeing = (units.counts * (units.counts - 1)).sum(axis=1) / (judged * (judged - 1))
    return float(np.average(agreeing, weights=units.number))


def fleiss_kappa(units: Patterns) -> float | Undefined:
    """Return Fleiss's kappa, `(P - P_e) / (1 - P_e)`, with `P` the percent agreement.

    `P_e` is the agreement of two values drawn from all judgments. Source: Fleiss (1971), whose
    units all have the same number of labelers; here that may differ.
    """
    agreement = percent_agreement(units)
    if isinstance(agreement, Undefined):
        return agreement
    totals = units.number @ units.counts
    chance = float(np.sum((totals / totals.sum()) ** 2))
    if np.count_nonzero(totals) < 2:
        return Undefined(ALL_ALIKE)
    return (agreement - chance) / (1 - chance)


def krippendorff_alpha(units: Patterns, values: Sequence[float], level: Level) -> float | Undefined:
    """Return Krippendorff's alpha, `1 - D_o / D_e`; labelers may miss any units.

    `D_o` is the mean squared difference of two values of one unit, `D_e` that of two values of any
    units. Source: Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability".

    Args:
        units: value counts.
        values: `[V]`, ascending; of a nominal scale any numbers.
        level: which differences count: any alike, of ranks, of numbers, or of ratios.
    """
    if not units.number.sum():
        return Undefined(NO_OVERLAP)
    weights = units.number / (units.counts.sum(axis=1) - 1)
    # o_ck = sum_u n_uc (n_uk - [c = k]) / (m_u - 1)
    coincidences = (units.counts * weights[:, None]).T @ units.counts
    coincidences -= np.diag(weights @ units.counts)
    totals = coincidences.sum(axis=1)
    if np.count_nonzero(totals) < 2:
        return Undefined(ALL_ALIKE)
    differences = _squared_differences(np.asarray(values, np.float64), totals, level)
    observed = float((coincidences * differences).sum())
    expected = float(totals @ differences @ totals) / (totals.sum() - 1)
    alpha: float = 1 - observed / expected
    return alpha


def cohen_kappa(
    table: npt.NDArray[np.integer], weights: Literal["none", "linear", "quadratic"] = "none"
) -> float | Undefined:
    """Return Cohen's kappa of two labelers, `1 - sum(w * observed) / sum(w * expected)`.

    Source: Cohen (1960), and (1968) for weights: disagreements count by how far values are apart.

    Args:
        table: `[V, V]` units by the first labeler's value and the second's.
        weights: of disagreements: all alike, by distance, or by its square.
    """
    total = table.sum()
    if not total:
        return Undefined(NO_OVERLAP)
    shares = table / total
    index = np.arange(len(table))
    distance = np.abs(index[:, None] - index[None, :])
    power = {"none": 0, "linear": 1, "quadratic": 2}[weights]
    disagreement = np.where(distance > 0, distance.astype(np.float64) ** power, 0)
    expected = float(shares.sum(axis=1) @ disagreement @ shares.sum(axis=0))
    if not expected:
        return Undefined(ALL_ALIKE)
    return 1 - float((shares * disagreement).sum()) / expected


def kendall_w(ranks: npt.NDArray[np.floating]) -> float | Undefined:
    """Return Kendall's coefficient of concordance of complete rankings, corrected for ties.

    `W = (12 sum R_i^2 - 3 m^2 n (n+1)^2) / (m^2 n (n^2-1) - m sum T_j)`, with `R_i` the sum of an
    item's ranks and `T_j = sum (t^3 - t)` over a labeler's groups of ties. Source: Kendall and
    Gibbons (1990), chapter 6.

    Args:
        ranks: `[m, n]` positions that each of m labelers gave n items; equal ones are a tie.
    """
    num_labelers, num_items = ranks.shape
    if num_labelers < 2:
        return Undefined(NO_OVERLAP)
    smaller = (ranks[:, None, :] < ranks[:, :, None]).sum(axis=2)
    equal = (ranks[:, None, :] == ranks[:, :, None]).sum(axis=2)
    sums = (smaller + (equal + 1) / 2).sum(axis=0)
    ties = float((equal.astype(np.float64) ** 2 - 1).sum())  # each of t ties adds t^2 - 1
    spread = 12 * float(sums @ sums) - 3 * num_labelers**2 * num_items * (num_items + 1) ** 2
    largest = num_labelers**2 * num_items * (num_items**2 - 1) - num_labelers * ties
    return spread / largest if largest > 0 else Undefined("everybody saw ties alone")


def with_interval(
    measure: Measure, units: Patterns, *, num_resamples: int = 500, seed: int = 0
) -> Estimate | Undefined:
    """Return a measure with its bootstrap interval over units, which are drawn with replacement.

    Args:
        measure: of value counts.
        units: value counts.
        num_resamples: how often the units are drawn.
        seed: of the draws.
    """
    value = measure(units)
    if isinstance(value, Undefined):
        return value
    num_units = int(units.number.sum())
    draws = np.random.default_rng(seed).multinomial(
        num_units, units.number / num_units, size=num_resamples
    )
    drawn = [measure(units._replace(number=draw.astype(np.float64))) for draw in draws]
    defined = [one for one in drawn if not isinstance(one, Undefined)]
    if len(defined) < _LEAST_DEFINED * num_resamples:
        return Estimate(value, None, None)
    low, high = np.quantile(defined, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def _squared_differences(values: Floats, totals: Floats, level: Level) -> Floats:
    """Return `[V, V]` the squared differences of values, which for ranks depend on the counts."""
    if level == "ordinal":  # the judgments between the middles of the two values
        values = np.cumsum(totals) - totals / 2
    differences: Floats = values[:, None] - values[None, :]
    if level == "nominal":
        differences = (differences != 0).astype(np.float64)
    elif level == "ratio":
        sums = values[:, None] + values[None, :]
        differences = differences / np.where(sums == 0, np.inf, sums)
    return np.square(differences)
