"""One-coin Dawid-Skene: how often each labeler is right, and so whom to believe."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.feedback.aggregation.method import (
    Aggregation,
    JudgedPair,
    larger_is_better,
    oriented,
    pair_points,
)
from lit_rlhf.feedback.records import Comparison, JudgedGroup

Floats = npt.NDArray[np.float64]
_TOLERANCE = 1e-6


class _Vote(NamedTuple):
    """One labeler's preference between two responses: 1 for the first, -1 for the second."""

    labeler: str
    side: int


@dataclass(frozen=True)
class OneCoinDawidSkene(Aggregation):
    """Each labeler prefers the better response with a probability of their own.

    Of every pair, one response is the better one, and a tie says nothing about which. Accuracies
    and pairs are found by expectation-maximisation over all groups, from the labelers' shares on.
    It pays where labelers differ much in their accuracy, and needs names: the field `labelers`.
    Source: Dawid and Skene (1979), with one parameter a labeler.

    Attributes:
        prior_right: imagined pairs that each labeler got right, more than 0.
        prior_wrong: imagined pairs that each labeler got wrong, more than 0.
        num_iterations: at most so many.
        accuracies: labeler -> accuracy where they are known; None to learn them from the data.

    Raises:
        ConfigError: a number is out of range.
    """

    prior_right: float = 2.0
    prior_wrong: float = 1.0
    num_iterations: int = 100
    accuracies: dict[str, float] | None = None
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.prior_right, self.prior_wrong) <= 0 or self.num_iterations < 1:
            raise ConfigError(
                "data.aggregation: prior_right and prior_wrong must be above 0, and "
                "num_iterations 1 or more."
            )
        if any(not 0 < accuracy < 1 for accuracy in (self.accuracies or {}).values()):
            raise ConfigError("data.aggregation.accuracies: each must be between 0 and 1.")

    def fit(self, groups: Iterable[Comparison | JudgedGroup]) -> Self:
        """Return the method with the labelers' accuracies.

        Raises:
            DataError: a judged group does not name its labelers.
        """
        if self.accuracies is not None:
            return self
        pair, labeler, side = array("l"), array("l"), array("b")
        names: dict[str, int] = {}
        num_pairs = 0
        for group in groups:
            if isinstance(group, Comparison):
                continue
            for votes in _votes(group).values():
                for vote in votes:
                    pair.append(num_pairs)
                    labeler.append(names.setdefault(vote.labeler, len(names)))
                    side.append(vote.side)
                num_pairs += 1
        learned = self._learn(np.array(pair), np.array(labeler), np.array(side, np.float64))
        return replace(self, accuracies=dict(zip(names, learned.tolist(), strict=True)))

    def pairs_of_group(self, group: JudgedGroup) -> list[JudgedPair]:
        """Return the pairs of a judged group, as `Aggregation.pairs` does."""
        votes = _votes(group)
        found = []
        for a, b, _, _ in pair_points(group):
            belief = sum(vote.side * self._log_odds(vote.labeler) for vote in votes.get((a, b), []))
            first = float(1 / (1 + np.exp(-belief)))
            found.append(oriented(a, b, first, 1 - first, group.weight))
        return found

    def _log_odds(self, labeler: str) -> float:
        unseen = self.prior_right / (self.prior_right + self.prior_wrong)
        accuracy = (self.accuracies or {}).get(labeler, unseen)
        return float(np.log(accuracy / (1 - accuracy)))

    def _learn(
        self, pair: npt.NDArray[np.int64], labeler: npt.NDArray[np.int64], side: Floats
    ) -> Floats:
        """Return the accuracy of each labeler, from parallel arrays with one entry a vote."""
        if not len(pair):
            return np.zeros(0)
        num_votes = np.bincount(labeler)
        # From the shares on: the majority is right more often than not.
        belief = np.bincount(pair, side) / np.bincount(pair)
        first = (1 + belief) / 2
        accuracies = np.zeros(len(num_votes))
        for _ in range(self.num_iterations):
            right = np.where(side > 0, first[pair], 1 - first[pair])
            learned = (np.bincount(labeler, right) + self.prior_right) / (
                num_votes + self.prior_right + self.prior_wrong
            )
            log_odds = np.log(learned / (1 - learned))
            first = 1 / (1 + np.exp(-np.bincount(pair, side * log_odds[labeler])))
            if float(np.abs(learned - accuracies).max()) < _TOLERANCE:
                break
            accuracies = learned
        return learned


def _votes(group: JudgedGroup) -> Mapping[tuple[int, int], list[_Vote]]:
    """Return for each pair of responses who preferred which; ties are left out."""
    if group.labelers is None:
        raise DataError(
            "OneCoinDawidSkene learns how often each labeler is right, and a judged group does not "
            "name them: give the rows the field 'labelers', or choose another data.aggregation."
        )
    votes: dict[tuple[int, int], list[_Vote]] = {}
    for name, scores in zip(group.labelers, larger_is_better(group), strict=True):
        for a, b in combinations(range(len(scores)), 2):
            first, second = scores[a], scores[b]
            if first is not None and second is not None and first != second:
                vote = _Vote(name or "", 1 if first > second else -1)
                votes.setdefault((a, b), []).append(vote)
    return votes
