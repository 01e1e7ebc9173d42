"""How the true reward goes with the distance from the start: the forms of Gao et al.

With `d = sqrt(KL)`, the gain of the gold reward over the initial policy is about
`d (alpha - beta d)` for best-of-n and `d (alpha - beta log d)` for reinforcement learning.
Source: Gao, Schulman and Hilton, Scaling Laws for Reward Model Overoptimization, 2022,
equations 1 and 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from lit_rlhf.errors import DataError

Floats = npt.NDArray[np.float64]
Form = Literal["best_of_n", "rl"]


@dataclass(frozen=True)
class GaoFit:
    """A fitted form.

    Attributes:
        form: "best_of_n" or "rl".
        alpha: gain a unit of `sqrt(nat)` at the start (rl: at `d = 1`).
        beta: how fast that gain is lost; positive where the curve turns.
        start: reward at `d = 0`; 0 where gains were fitted.
        rmse: root mean square of what the curve leaves, in the unit of the reward.
    """

    form: Form
    alpha: float
    beta: float
    start: float
    rmse: float

    def predict(self, distances: npt.ArrayLike) -> Floats:
        """Return the fitted reward at `sqrt(KL)`s, of any shape."""
        d = np.asarray(distances, np.float64)
        first, second = _columns(self.form, d)
        reward: Floats = self.start + self.alpha * first - self.beta * second
        return reward

    @property
    def peak(self) -> float | None:
        """The `sqrt(KL)` from which on the reward falls; None where it does not turn.

        `alpha / (2 beta)` for best-of-n, `exp(alpha / beta - 1)` for rl. It may lie beyond the
        data, where nothing supports it.
        """
        if self.form == "best_of_n":
            return self.alpha / (2 * self.beta) if self.beta > 0 and self.alpha > 0 else None
        # Far beyond any KL where beta is tiny: no turn, rather than an overflow.
        if self.beta <= 0 or self.alpha / self.beta > 100:
            return None
        return math.exp(self.alpha / self.beta - 1)


def fit_best_of_n(
    distances: npt.ArrayLike, rewards: npt.ArrayLike, *, with_start: bool = False
) -> GaoFit:
    """Fit `d (alpha - beta d)` by least squares.

    Args:
        distances: `[K]` `sqrt(KL)`, at least 0.
        rewards: `[K]` gains over the initial policy; with `with_start` rewards as they are.
        with_start: fit the reward at `d = 0` as well.

    Returns:
        The fit.

    Raises:
        DataError: lengths differ, a value is not finite or a distance negative, or there are
            fewer different distances above 0 than parameters that they determine.
    """
    return _fit("best_of_n", distances, rewards, with_start)


def fit_rl(distances: npt.ArrayLike, rewards: npt.ArrayLike, *, with_start: bool = False) -> GaoFit:
    """Fit `d (alpha - beta log d)` by least squares, see `fit_best_of_n`."""
    return _fit("rl", distances, rewards, with_start)


def _columns(form: Form, d: Floats) -> tuple[Floats, Floats]:
    """Return what `alpha` and `-beta` are multiplied with; `0 log 0 = 0`."""
    if form == "best_of_n":
        return d, d * d
    logs = np.log(np.where(d > 0, d, 1.0))
    return d, d * logs


def _fit(form: Form, distances: npt.ArrayLike, rewards: npt.ArrayLike, with_start: bool) -> GaoFit:
    d, reward = np.asarray(distances, np.float64), np.asarray(rewards, np.float64)
    if d.ndim != 1 or d.shape != reward.shape:
        raise DataError(f"{d.shape} distances and {reward.shape} rewards: expected one of each")
    if not (np.isfinite(d).all() and np.isfinite(reward).all()) or (d < 0).any():
        raise DataError("distances or rewards hold a negative distance or a value not finite")
    # At d = 0 both columns vanish: such a point determines the start and nothing else.
    num_informative = np.unique(d if with_start else d[d > 0]).size
    if num_informative < 2 + with_start:
        raise DataError(
            f"{num_informative} different distances determine no curve; "
            f"at least {2 + with_start} are needed"
        )
    first, second = _columns(form, d)
    columns = [first, -second] + ([np.ones_like(d)] if with_start else [])
    design = np.stack(columns, axis=1)
    solution = np.linalg.lstsq(design, reward, rcond=None)[0]
    rmse = float(np.sqrt(np.mean(np.square(design @ solution - reward))))
    start = float(solution[2]) if with_start else 0.0
    return GaoFit(form, float(solution[0]), float(solution[1]), start, rmse)
