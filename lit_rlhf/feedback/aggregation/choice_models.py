"""Bradley-Terry and Plackett-Luce: one strength a response, by maximum likelihood with a prior.

Both say that of a set of responses, `i` is chosen as the best with probability
`exp(s_i) / sum_{j in set} exp(s_j)`. Bradley-Terry takes each pair of a ranking as a choice of its
own, Plackett-Luce the ranking as a row of choices: the best of all, the best of the rest, ...
Strengths have the prior `Normal(0, 1 / precision)`, so one judgment never makes one infinite.
"""

from __future__ import annotations

import abc
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lit_rlhf.errors import ConfigError
from lit_rlhf.feedback.aggregation.method import (
    Aggregation,
    JudgedPair,
    larger_is_better,
    oriented,
    pair_points,
)
from lit_rlhf.feedback.records import JudgedGroup, LabelerScores

Floats = npt.NDArray[np.float64]

_MOST_STEPS = 100
_TOLERANCE = 1e-9


class _Choices(NamedTuple):
    """What was chosen: `log likelihood = wins @ s - sum(weights * logsumexp(s over the set))`.

    Attributes:
        wins: `[K]` how often each response was chosen.
        sets: `[S, K]` bool, the responses that each choice was among.
        weights: `[S]` how often each choice was made.
    """

    wins: Floats
    sets: npt.NDArray[np.bool_]
    weights: Floats


@dataclass(frozen=True)
class _ChoiceModel(Aggregation):
    """A model of strengths.

    Attributes:
        precision: of the strengths' normal prior, more than 0; the larger, the nearer the
            probabilities are to one half.

    Raises:
        ConfigError: `precision` is not positive.
    """

    precision: float = 1.0

    def __post_init__(self) -> None:
        if not self.precision > 0:
            raise ConfigError(f"data.aggregation.precision={self.precision}: must be above 0.")

    def strengths(self, group: JudgedGroup) -> Floats:
        """Return `[K]` the strength of each response; they add up to 0."""
        return _most_likely(self._choices(group), self.precision)

    def pairs_of_group(self, group: JudgedGroup) -> list[JudgedPair]:
        """Return the pairs of a judged group, as `Aggregation.pairs` does."""
        strengths = self.strengths(group)
        pairs = []
        for a, b, _, _ in pair_points(group):
            first = float(1 / (1 + np.exp(strengths[b] - strengths[a])))
            pairs.append(oriented(a, b, first, 1 - first, group.weight))
        return pairs

    @abc.abstractmethod
    def _choices(self, group: JudgedGroup) -> _Choices:
        """Return what the labelers chose."""


@dataclass(frozen=True)
class BradleyTerry(_ChoiceModel):
    """Strengths from pairs: `P(a better than b) = sigmoid(s_a - s_b)`, a tie half a win for each.

    A pair learns from the group's other pairs: who beats the winner of another pair is stronger.
    Source: Bradley and Terry (1952).

    Attributes:
        precision: of the strengths' normal prior, more than 0.
    """

    def _choices(self, group: JudgedGroup) -> _Choices:
        num_responses = len(group.responses)
        points = pair_points(group)
        wins = np.zeros(num_responses)
        sets = np.zeros((len(points), num_responses), np.bool_)
        for row, (a, b, points_a, points_b) in enumerate(points):
            wins[a] += points_a / 2
            wins[b] += points_b / 2
            sets[row, [a, b]] = True
        weights = [(points_a + points_b) / 2 for _, _, points_a, points_b in points]
        return _Choices(wins, sets, np.array(weights))


@dataclass(frozen=True)
class PlackettLuce(_ChoiceModel):
    """Strengths from whole rankings; of tied responses, every order is taken as equally likely.

    With two responses it is Bradley-Terry. Source: Luce (1959), Plackett (1975).

    Attributes:
        precision: of the strengths' normal prior, more than 0.
    """

    def _choices(self, group: JudgedGroup) -> _Choices:
        wins = np.zeros(len(group.responses))
        weights: dict[tuple[int, ...], float] = defaultdict(float)
        for scores in larger_is_better(group):
            rest: list[int] = []
            for tied in reversed(_by_rank(scores)):
                wins[tied] += 1
                # In a random order of the tied ones, any of them may be left when one is chosen.
                for size in range(1, len(tied) + 1):
                    for left in combinations(tied, size):
                        weights[tuple(sorted((*left, *rest)))] += 1 / comb(len(tied), size)
                rest += tied
        sets = np.zeros((len(weights), len(wins)), np.bool_)
        for row, members in enumerate(weights):
            sets[row, list(members)] = True
        return _Choices(wins, sets, np.array(list(weights.values())))


def _by_rank(scores: LabelerScores) -> list[list[int]]:
    """Return the responses that a labeler judged, the best first, those of one score together."""
    by_score: dict[float, list[int]] = defaultdict(list)
    for response, score in enumerate(scores):
        if score is not None:
            by_score[score].append(response)
    return [by_score[score] for score in sorted(by_score, reverse=True)]


def _most_likely(choices: _Choices, precision: float) -> Floats:
    """Return the strengths that maximise log likelihood and prior, by Newton's method."""
    strengths = np.zeros(len(choices.wins))
    value = _log_posterior(strengths, choices, precision)
    for _ in range(_MOST_STEPS):
        chances = np.exp(_log_chances(strengths, choices)[0])
        expected = choices.weights @ chances
        gradient = choices.wins - expected - precision * strengths
        curvature = np.diag(expected + precision)
        curvature -= (chances * choices.weights[:, None]).T @ chances
        step = np.linalg.solve(curvature, gradient)
        # Concave, but a full step from far away may overshoot.
        while (new := _log_posterior(strengths + step, choices, precision)) < value - _TOLERANCE:
            step /= 2
        strengths, value = strengths + step, new
        if float(np.abs(step).max()) < _TOLERANCE:
            break
    return strengths


def _log_chances(strengths: Floats, choices: _Choices) -> tuple[Floats, Floats]:
    """Return `[S, K]` the log-probabilities of each choice, and `[S, 1]` what was divided by."""
    powers = np.where(choices.sets, strengths, -np.inf)
    sums: Floats = np.logaddexp.reduce(powers, axis=1, keepdims=True)
    return powers - sums, sums


def _log_posterior(strengths: Floats, choices: _Choices, precision: float) -> float:
    _, sums = _log_chances(strengths, choices)
    prior = precision / 2 * float(strengths @ strengths)
    return float(choices.wins @ strengths - choices.weights @ sums[:, 0]) - prior
