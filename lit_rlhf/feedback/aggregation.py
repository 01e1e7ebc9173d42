"""From several labelers' judgments to pairs with a probability, and to mean ratings.

Averaged judgments, not majority votes: of the labelers who judged both responses of a pair, the
share who preferred one, with a tie counted as half for each.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.records import Comparison, JudgedGroup, LabelerScores


class JudgedPair(NamedTuple):
    """Two responses of a group, the one that was preferred (or tied) first.

    Attributes:
        chosen: index of the response with `probability >= 0.5`; of a tie, the earlier one.
        rejected: index of the other response.
        probability: share of the judgments for `chosen`, from 0.5 to 1.
        weight: how much the pair counts, 0 or more.
    """

    chosen: int
    rejected: int
    probability: float
    weight: float


def judged_pairs(judgment: Comparison | JudgedGroup) -> list[JudgedPair]:
    """Return each unordered pair of responses that somebody judged, once.

    `probability = (1 / n) * sum over n labelers of ([a > b] + 0.5 * [a == b])`, over the labelers
    who judged both. A comparison is the smallest group: one pair, `chosen` at 0 and `rejected` at
    1, turned round where its probability is below one half.

    Returns:
        The pairs in the order of their responses; a pair that nobody judged is left out, so the
        list may be empty.
    """
    if isinstance(judgment, Comparison):
        return [_oriented(0, 1, judgment.probability, 1 - judgment.probability, judgment.weight)]
    labelers = _larger_is_better(judgment)
    pairs = []
    for a, b in combinations(range(len(judgment.responses)), 2):
        points_a, points_b = _half_points(labelers, a, b)
        if total := points_a + points_b:
            pairs.append(_oriented(a, b, points_a / total, points_b / total, judgment.weight))
    return pairs


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


def _oriented(
    a: int, b: int, probability_a: float, probability_b: float, weight: float
) -> JudgedPair:
    if probability_a >= probability_b:
        return JudgedPair(a, b, probability_a, weight)
    return JudgedPair(b, a, probability_b, weight)


def _larger_is_better(group: JudgedGroup) -> tuple[LabelerScores, ...]:
    if group.ratings is not None:
        return group.ratings
    return tuple(
        tuple(None if position is None else -position for position in ranking)
        for ranking in group.rankings or ()
    )


def _half_points(labelers: tuple[LabelerScores, ...], a: int, b: int) -> tuple[int, int]:
    """Count two points a labeler, split by preference: integers, so that no share is rounded."""
    points_a = points_b = 0
    for scores in labelers:
        score_a, score_b = scores[a], scores[b]
        if score_a is None or score_b is None:
            continue
        points_a += 2 * (score_a > score_b) + (score_a == score_b)
        points_b += 2 * (score_b > score_a) + (score_a == score_b)
    return points_a, points_b
