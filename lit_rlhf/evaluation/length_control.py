"""Win rates without the advantage of writing more."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.bootstrap import (
    NUM_RESAMPLES,
    Estimate,
    Floats,
    Statistic,
    bootstrap,
    share,
)

# A weak pull of both coefficients to 0, in pseudo-observations: it keeps the fit finite where one
# side always wins, or always wins when it is the longer one, and moves others by under 0.1 %.
RIDGE = 0.01
_NUM_STEPS = 30
_LARGEST_STEP = 2.0


class LengthControl(NamedTuple):
    """A win rate at equal length, and how much judges pay for length.

    Attributes:
        win_rate: predicted win rate for responses of equal length.
        length_effect: change of the log-odds of a win for a response that is one deviation of
            the length differences longer, by `tanh(1)` of the slope; 0 where length does not
            matter.
    """

    win_rate: Estimate
    length_effect: Estimate


def length_controlled_win_rate(
    outcomes: npt.ArrayLike,
    lengths: npt.ArrayLike,
    opponent_lengths: npt.ArrayLike,
    *,
    num_resamples: int = NUM_RESAMPLES,
) -> LengthControl:
    """Estimate how often the first policy wins when both responses are of the same length.

    `P(win) = sigmoid(a + b * tanh(d / s))` with the length difference `d` of a prompt's two
    responses and the deviation `s` of all differences is fitted to the outcomes; the controlled
    rate is `sigmoid(a)`, the prediction at `d = 0`. This is the length term of AlpacaEval 2
    (Dubois et al., Length-Controlled AlpacaEval, 2024, equation 2) without its term for the
    difficulty of each instruction, which needs the results of many other models. A judge's honest
    preference for what only long responses can say is removed as well: it is the rate at equal
    length, no more. Where one side wins every time, the interval is that of the plain rate, see
    `share`.

    Args:
        outcomes: `[P]` in [0, 1]: 1 a win, 0.5 a tie, 0 a loss.
        lengths: `[P]` of the first policy's responses, in characters.
        opponent_lengths: `[P]` of the opponent's.
        num_resamples: bootstrap samples over prompts.

    Raises:
        DataError: shapes differ, nothing is there, or an outcome is not in [0, 1].
    """
    outcome = np.asarray(outcomes, np.float64)
    difference = np.asarray(lengths, np.float64) - np.asarray(opponent_lengths, np.float64)
    if outcome.ndim != 1 or outcome.shape != difference.shape or outcome.size == 0:
        raise DataError("outcomes and lengths: expected one of each a prompt, at least one")
    if not ((outcome >= 0) & (outcome <= 1)).all():
        raise DataError("outcomes must be in [0, 1]: 1 a win, 0.5 a tie, 0 a loss")
    scale = difference.std() or 1.0
    feature = np.tanh(difference / scale)

    def controlled(counts: Floats) -> Floats:
        rate: Floats = expit(_fit(outcome, feature, counts)[0])
        return rate

    def effect(counts: Floats) -> Floats:
        return _fit(outcome, feature, counts)[1] * math.tanh(1)

    def estimate(statistic: Statistic) -> Estimate:
        return bootstrap(statistic, outcome.size, num_resamples=num_resamples)

    rate = estimate(controlled)
    if outcome.min() == outcome.max() and outcome[0] in {0.0, 1.0}:
        plain = share(outcome)  # resamples of one side's wins are all alike
        rate = rate._replace(low=plain.low, high=plain.high)
    return LengthControl(rate, estimate(effect))


def _fit(outcome: Floats, feature: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Fit the logistic curve to each resample by Newton's method: `[R]` intercepts and slopes."""
    a, b = np.zeros(len(counts)), np.zeros(len(counts))
    for _ in range(_NUM_STEPS):
        predicted = expit(a[:, None] + b[:, None] * feature)  # [R, P]
        residual = counts * (outcome - predicted)
        curvature = counts * predicted * (1 - predicted)
        gradient_a = residual.sum(1) - RIDGE * a
        gradient_b = residual @ feature - RIDGE * b
        aa, ab = curvature.sum(1) + RIDGE, curvature @ feature
        bb = curvature @ feature**2 + RIDGE
        determinant = aa * bb - ab * ab  # positive: of a positive definite matrix
        step_a = (bb * gradient_a - ab * gradient_b) / determinant
        step_b = (aa * gradient_b - ab * gradient_a) / determinant
        # Newton may leap over the optimum where the curve is flat.
        shrink = np.minimum(1, _LARGEST_STEP / np.maximum(np.hypot(step_a, step_b), 1e-12))
        a, b = a + shrink * step_a, b + shrink * step_b
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < 1e-9:
            break
    return a, b
