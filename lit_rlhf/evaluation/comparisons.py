"""How well scores order texts as people do."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lit_rlhf.errors import DataError


class OrderAccuracy(NamedTuple):
    """The share of pairs that are ordered as people order them.

    Attributes:
        accuracy: in [0, 1]; NaN without a pair.
        num_pairs: the pairs that counted.
    """

    accuracy: float
    num_pairs: int


def order_accuracy(
    scores: npt.ArrayLike, mean_ratings: npt.ArrayLike, *, min_gap: float = 0.0
) -> OrderAccuracy:
    """Compare the order of scores with that of people's mean ratings, over all pairs of texts.

    Pairs whose mean ratings are at most `min_gap` apart are left out (so at 0, ties are); equal
    scores count half.

    Args:
        scores: `[N]` one a text, higher is better.
        mean_ratings: `[N]` people's mean rating of the same texts.
        min_gap: in units of the rating scale.

    Returns:
        The accuracy and the number of pairs behind it.

    Raises:
        DataError: the two differ in length, or a value is not finite.
    """
    score, rating = np.asarray(scores, np.float64), np.asarray(mean_ratings, np.float64)
    if score.ndim != 1 or score.shape != rating.shape:
        raise DataError(
            f"{score.shape} scores and {rating.shape} mean ratings: expected one of each a text"
        )
    if not (np.isfinite(score).all() and np.isfinite(rating).all()):
        raise DataError("scores or mean ratings hold a value that is not finite")
    num_correct, num_pairs = 0.0, 0
    for row in range(len(score) - 1):  # a row at a time: memory [N], not [N, N]
        gap = rating[row] - rating[row + 1 :]
        counted = np.abs(gap) > min_gap
        agreement = np.sign(gap[counted]) * np.sign((score[row] - score[row + 1 :])[counted])
        num_correct += float((1 + agreement).sum()) / 2
        num_pairs += int(counted.sum())
    return OrderAccuracy(num_correct / num_pairs if num_pairs else float("nan"), num_pairs)
