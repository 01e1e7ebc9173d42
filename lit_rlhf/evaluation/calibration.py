"""How far predicted preferences can be believed: calibration and Brier score, with intervals.

The same conventions as the metrics of training (`modules.metrics`): `predicted [M]` is the
probability that the first response of a pair is better, `human [M]` the share of people who said
so, `weight [M]` how much the pair counts. Pairs of one prompt are resampled together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lit_rlhf.evaluation.bootstrap import Estimate, Floats, bootstrap, cluster_sums, ratio
from lit_rlhf.modules.metrics import both_orders

_NUM_BINS = 10


class ReliabilityBin(NamedTuple):
    """What people said where a probability in `[low, high)` was predicted.

    Attributes:
        low: lower edge of the bin.
        high: upper edge.
        predicted: mean predicted probability.
        human: mean share of people, with its interval; `n` counts pairs, each in both orders.
    """

    low: float
    high: float
    predicted: float
    human: Estimate


class JudgedPredictions(NamedTuple):
    """Predictions for one judged pair or more, and what people said.

    Attributes:
        predicted: `[M]` in [0, 1].
        human: `[M]` in [0, 1].
        weight: `[M]`, 0 or more.
        prompts: `[M]` the prompt of each pair, from 0.
        num_prompts: `P`.
    """

    predicted: Floats
    human: Floats
    weight: Floats
    prompts: npt.NDArray[np.int64]
    num_prompts: int


def brier_score(pairs: JudgedPredictions) -> Estimate:
    """Estimate the weighted mean squared error of the predicted against the human probability.

    Source: Brier 1950, with the share of people in place of an outcome.
    """
    error = pairs.weight * (pairs.predicted - pairs.human) ** 2
    return ratio(_by_prompt(pairs, error), _by_prompt(pairs, pairs.weight), n=pairs.weight.size)


def calibration_error(pairs: JudgedPredictions) -> Estimate:
    """Estimate the expected calibration error over bins of equal width.

    `sum_b (w_b / w) |mean predicted_b - mean human_b|`. Source: Naeini et al. 2015, with soft
    labels; every pair enters in both orders with half its weight, so that the result does not
    depend on which response is first. Noise in the bins only ever adds to it: of a perfect
    model it is above 0, and the fewer the pairs the more so. The interval shares this bias.
    """
    bins, predicted, human, half = _both_orders(pairs)
    gaps = np.zeros((2 * pairs.weight.size, _NUM_BINS))
    gaps[np.arange(len(gaps)), bins] = half * (predicted - human)
    gaps = cluster_sums(gaps, np.tile(pairs.prompts, 2), pairs.num_prompts)  # [P, bins]
    weights = _by_prompt(pairs, pairs.weight)

    def statistic(counts: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            error: Floats = np.abs(counts @ gaps).sum(1) / (counts @ weights)
            return error

    return bootstrap(statistic, pairs.num_prompts, n=pairs.weight.size)


def reliability(pairs: JudgedPredictions) -> list[ReliabilityBin]:
    """Return the bins behind the calibration error, without those that are empty."""
    bins, predicted, human, half = _both_orders(pairs)
    prompts = np.tile(pairs.prompts, 2)
    table = []
    for index in range(_NUM_BINS):
        inside = (bins == index) & (half > 0)
        if not inside.any():
            continue
        above = cluster_sums((half * human)[inside], prompts[inside], pairs.num_prompts)
        below = cluster_sums(half[inside], prompts[inside], pairs.num_prompts)
        table.append(
            ReliabilityBin(
                index / _NUM_BINS,
                (index + 1) / _NUM_BINS,
                float((half * predicted)[inside].sum() / half[inside].sum()),
                ratio(above, below, n=int(inside.sum())),
            )
        )
    return table


def _both_orders(pairs: JudgedPredictions) -> list[npt.NDArray[Any]]:
    predicted, human, weight = (torch.from_numpy(column) for column in pairs[:3])
    return [column.numpy() for column in both_orders(predicted, human, weight, _NUM_BINS)]


def _by_prompt(pairs: JudgedPredictions, values: Floats) -> Floats:
    return cluster_sums(values, pairs.prompts, pairs.num_prompts)
