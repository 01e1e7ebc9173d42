"""How often the sequential test is wrong, and how soon it is right, on simulated curves.

A curve is `[K, n]`: looks and prompts. The optimised reward always rises, so that the validation
reward alone decides; in "validation falls, reward does not rise" it is the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lit_rlhf.overoptimization import DivergenceTest

Floats = npt.NDArray[np.float64]
NUM_LOOKS = 16
NUM_PROMPTS = 64
RARE = 0.03  # share of responses that win much


class Curves(NamedTuple):
    """Simulated runs.

    Attributes:
        validation: `[B, K, n]`.
        proxy: `[B, K, n]`.
    """

    validation: Floats
    proxy: Floats


def _noise(draw: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    return draw.standard_normal(shape)


def _plateau(draw: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    return _prompt_effects(draw, shape) + _noise(draw, shape)


def _rising(draw: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    looks = np.arange(shape[1])[:, None]
    return _plateau(draw, shape) + 1 - np.exp(-looks / 4)


def _autocorrelated(draw: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """Each prompt wanders by itself: what its fixed stream does to it."""
    steps = _noise(draw, shape)
    values = np.empty(shape)
    values[:, 0] = steps[:, 0]
    for look in range(1, shape[1]):
        values[:, look] = 0.95 * values[:, look - 1] + np.sqrt(1 - 0.95**2) * steps[:, look]
    return values


def _random_walk(draw: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """Each prompt goes its own way without an end; their mean goes nowhere."""
    return np.cumsum(_noise(draw, shape), axis=1)


def _heavy_tails(draw: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    return draw.standard_t(2, shape)  # without a variance


def _skewed(draw: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    return np.exp(_noise(draw, shape)) - np.exp(0.5)


def _becoming_skewed(draw: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """From look 4 on most responses are a little worse and a few much better, alike in the mean."""
    values = _noise(draw, shape) * 0.3
    late = shape[1] > 4
    if late:
        values[:, 4:] = _skewed(draw, (shape[0], shape[1] - 4, shape[2]))
    return values


def _changing_spread(draw: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    return _noise(draw, shape) * np.linspace(0.2, 3, shape[1])[:, None]


def _two_valued(draw: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    return (draw.random(shape) < 0.1).astype(np.float64)


def _rare_wins(draw: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """From look 4 on a few responses win much and all others lose a little, alike in the mean."""
    values = 0.1 * _noise(draw, shape)
    wins = draw.random(shape) < RARE
    values[:, 4:] += np.where(wins, 3.0, -3.0 * RARE / (1 - RARE))[:, 4:]
    return values


NULLS: dict[str, Callable[[np.random.Generator, tuple[int, int, int]], Floats]] = {
    "plateau with noise": _plateau,
    "rising, then a plateau": _rising,
    "autocorrelated (0.95) prompts": _autocorrelated,
    "random walk of each prompt": _random_walk,
    "heavy tails (t with 2 degrees)": _heavy_tails,
    "skewed (log-normal)": _skewed,
    "skewed from look 4 on": _becoming_skewed,
    "growing spread": _changing_spread,
    "rare ones among zeros": _two_valued,
}
RARE_WINS = "rare wins from look 4 on"  # not symmetric: the level needs enough prompts
ONE_SIDED = "validation falls, reward does not rise"


def null_curves(
    name: str, num_curves: int, seed: int, *, num_looks: int = NUM_LOOKS, n: int = NUM_PROMPTS
) -> Curves:
    """Simulate runs without divergence.

    Args:
        name: of `NULLS`, or `RARE_WINS` or `ONE_SIDED`.
        num_curves: `B`.
        seed: of the draws.
        num_looks: `K`.
        n: prompts.
    """
    draw = np.random.default_rng(seed)
    shape = (num_curves, num_looks, n)
    rise = 0.3 * np.arange(num_looks)[:, None]
    if name == ONE_SIDED:
        return Curves(_plateau(draw, shape) - rise, _plateau(draw, shape))
    validation = _rare_wins if name == RARE_WINS else NULLS[name]
    return Curves(validation(draw, shape), _noise(draw, shape) + rise)


def diverging_curves(
    num_curves: int, seed: int, *, num_looks: int, n: int, fall: float, turn: int = 4
) -> Curves:
    """Simulate runs whose validation reward rises by 1 deviation, then falls.

    Args:
        num_curves: `B`.
        seed: of the draws.
        num_looks: `K`.
        n: prompts.
        fall: deviations a look, after the turn.
        turn: index of the look with the best validation reward.
    """
    draw = np.random.default_rng(seed)
    shape = (num_curves, num_looks, n)
    looks = np.arange(num_looks)
    truth = np.where(looks <= turn, looks / turn, 1 - fall * (looks - turn))
    rise = 0.3 * looks[:, None]
    # Half of a response's variance is its prompt's, which pairing takes out.
    noise = np.sqrt(0.5) * _noise(draw, shape)
    validation = np.sqrt(0.5) * _prompt_effects(draw, shape) + noise + truth[:, None]
    return Curves(validation, _noise(draw, shape) + rise)


def first_alarms(test: DivergenceTest, curves: Curves) -> npt.NDArray[np.int64]:
    """Return `[B]`: the index of the look at which each run has its first alarm, -1 for none."""
    alarms = np.full(len(curves.validation), -1, np.int64)
    for look in range(1, curves.validation.shape[1]):
        scores = test.scores(curves.validation[:, : look + 1], curves.proxy[:, : look + 1])
        critical = test.critical_value(look, scores.windows.size)
        fires = (np.minimum(scores.fall, scores.rise) >= critical).any(axis=-1)
        alarms[fires & (alarms < 0)] = look
    return alarms


def simulation_table(num_curves: int = 2000, seed: int = 1) -> str:
    """Return the tables of the documentation: false alarms, and validations until an alarm."""
    test = DivergenceTest(0.05)
    lines = [f"| curves without divergence ({num_curves:,} each) | false alarms |", "| --- | --- |"]
    for name in [*NULLS, ONE_SIDED]:
        share = np.mean(first_alarms(test, null_curves(name, num_curves, seed)) >= 0)
        lines.append(f"| {name} | {100 * share:.2f} % |")
    lines += ["", f"| prompts | {RARE:.0%} of responses win much: false alarms |", "| --- | --- |"]
    for n in (64, 128, 256, 512):
        share = np.mean(first_alarms(test, null_curves(RARE_WINS, num_curves, seed, n=n)) >= 0)
        lines.append(f"| {n} | {100 * share:.2f} % |")
    header = "fall a validation | alarm within 12 validations of the turn | median fall by then"
    lines += ["", f"| prompts | {header} |", "| --- | --- | --- | --- |"]
    for n in (64, 128, 256, 512):
        for fall in (0.05, 0.1, 0.2):
            lines.append(_power_row(test, num_curves // 10, seed, n, fall))
    return "\n".join(lines) + "\n"


def _power_row(test: DivergenceTest, num_curves: int, seed: int, n: int, fall: float) -> str:
    turn = 4
    curves = diverging_curves(num_curves, seed, num_looks=turn + 13, n=n, fall=fall, turn=turn)
    alarms = first_alarms(test, curves)
    found = alarms[alarms >= 0]
    share = 100 * len(found) / num_curves
    lost = f"{fall * (np.median(found) - turn):.2f}" if len(found) else ""
    return f"| {n} | {fall} | {share:.0f} % | {lost} |"


def _prompt_effects(draw: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """`[B, 1, n]`: prompts differ, and stay as they are over all looks."""
    return draw.standard_normal((shape[0], 1, shape[2]))
