"""From several labelers' judgments of a group to pairs with a probability: shares and majorities.

Averaged judgments, not majority votes, are the default: of the labelers who judged both responses
of a pair, the share who preferred one, with a tie counted as half for each.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, NamedTuple, Self

from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.feedback.records import Comparison, JudgedGroup, LabelerScores


class JudgedPair(NamedTuple):
    """Two responses of a group, the one that was preferred (or tied) first.

    Attributes:
        chosen: index of the response with `probability >= 0.5`; of a tie, the earlier one.
        rejected: index of the other response.
        probability: share of the judgments for `chosen`, from 0.5 to 1.
        weight: how much the pair counts, 0 or more.
        margin: by how much the score of `chosen` is to be larger; negative where it is to be less.
    """

    chosen: int
    rejected: int
    probability: float
    weight: float
    margin: float = 0.0


def pair_points(group: JudgedGroup) -> list[tuple[int, int, int, int]]:
    """Return each pair that somebody judged with the points of either response.

    A labeler gives two points, both to the better one, or one to each at a tie: integers, so that
    no share is rounded.

    Returns:
        `(a, b, points_a, points_b)` with `a < b`, in the order of the responses.
    """
    labelers = larger_is_better(group)
    found = []
    for a, b in combinations(range(len(group.responses)), 2):
        points_a = points_b = 0
        for scores in labelers:
            score_a, score_b = scores[a], scores[b]
            if score_a is None or score_b is None:
                continue
            points_a += 2 * (score_a > score_b) + (score_a == score_b)
            points_b += 2 * (score_b > score_a) + (score_a == score_b)
        if points_a + points_b:
            found.append((a, b, points_a, points_b))
    return found


def mean_ratings(group: JudgedGroup) -> list[float | None]:
    """Return the mean rating of each response over the labelers who rated it.

    Returns:
        One mean a response, None for a response that nobody rated.

    Raises:
        DataError: the group was ranked, not rated: positions of different labelers are not on one
            scale, so their mean is not a rating.
    """
    if group.ratings is None:
        raise DataError("Mean ratings need 'ratings'; this judged group holds 'rankings'.")
    means: list[float | None] = []
    for response in range(len(group.responses)):
        given = [scores[response] for scores in group.ratings]
        rated = [score for score in given if score is not None]
        means.append(sum(rated) / len(rated) if rated else None)
    return means


def oriented(
    a: int, b: int, probability_a: float, probability_b: float, weight: float
) -> JudgedPair:
    """Return the pair of responses `a` and `b`, the more probable one first; of a tie, `a`."""
    if probability_a >= probability_b:
        return JudgedPair(a, b, probability_a, weight)
    return JudgedPair(b, a, probability_b, weight)


def larger_is_better(group: JudgedGroup) -> tuple[LabelerScores, ...]:
    """Return one number a labeler and response, of which the larger is the better."""
    if group.ratings is not None:
        return group.ratings
    return tuple(
        tuple(None if position is None else -position for position in ranking)
        for ranking in group.rankings or ()
    )


class Aggregation(abc.ABC):
    """How several labelers' judgments of a group become pairs with probabilities.

    Frozen dataclasses below it are chosen by `class_path`. A comparison says its probability
    itself, and keeps it.

    Attributes:
        learns: it must see all groups (`fit`) before it can aggregate one.
    """

    learns: ClassVar[bool] = False

    def fit(self, groups: Iterable[Comparison | JudgedGroup]) -> Self:
        """Return the method as it is after it has seen all groups; itself, where it learns none."""
        return self

    def pairs(self, judgment: Comparison | JudgedGroup) -> list[JudgedPair]:
        """Return each pair of responses that somebody judged, once, the preferred one first."""
        if isinstance(judgment, Comparison):
            first = judgment.probability
            return [oriented(0, 1, first, 1 - first, judgment.weight)]
        return self.pairs_of_group(judgment)

    @abc.abstractmethod
    def pairs_of_group(self, group: JudgedGroup) -> list[JudgedPair]:
        """Return the pairs of a judged group, as `pairs` does."""


@dataclass(frozen=True)
class BetaMean(Aggregation):
    """The share of labelers who prefer a response, shrunk towards one half.

    `probability = (wins + prior) / (n + 2 * prior)`, with a tie as half a win: the mean of a share
    with the prior Beta(prior, prior). One labeler of one is less sure than fifteen of fifteen.

    Attributes:
        prior: imagined labelers for each side; 0.5 is Jeffreys's prior, 0 the plain share.

    Raises:
        ConfigError: `prior` is negative.
    """

    prior: float = 0.5

    def __post_init__(self) -> None:
        if not self.prior >= 0:
            raise ConfigError(f"data.aggregation.prior={self.prior}: must be 0 or more.")

    def pairs_of_group(self, group: JudgedGroup) -> list[JudgedPair]:
        """Return the pairs of a judged group, as `Aggregation.pairs` does."""
        pairs = []
        for a, b, points_a, points_b in pair_points(group):
            first, second = points_a + 2 * self.prior, points_b + 2 * self.prior
            total = first + second
            pairs.append(oriented(a, b, first / total, second / total, group.weight))
        return pairs


def judged_pairs(judgment: Comparison | JudgedGroup) -> list[JudgedPair]:
    """Return each unordered pair of responses that somebody judged, once, with plain shares.

    `probability = (1 / n) * sum over n labelers of ([a > b] + 0.5 * [a == b])`, over the labelers
    who judged both. A comparison is the smallest group: one pair, `chosen` at 0 and `rejected` at
    1, turned round where its probability is below one half.

    Returns:
        The pairs in the order of their responses; a pair that nobody judged is left out, so the
        list may be empty.
    """
    return BetaMean(prior=0).pairs(judgment)


@dataclass(frozen=True)
class Majority(Aggregation):
    """What most labelers preferred is better for certain, and a tie weighs nothing.

    For losses that take no soft labels. It forgets how sure people were: a loss that takes them
    learns more from the same judgments.
    """

    def pairs(self, judgment: Comparison | JudgedGroup) -> list[JudgedPair]:
        """Return the pairs of a group or a comparison, each with probability 1."""
        return [
            pair._replace(probability=1.0, weight=pair.weight * (pair.probability > 0.5))
            for pair in judged_pairs(judgment)
        ]

    def pairs_of_group(self, group: JudgedGroup) -> list[JudgedPair]:
        """Return the pairs of a judged group, as `pairs` does."""
        return self.pairs(group)
