import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.comparisons import order_accuracy

values = st.integers(-3, 3).map(float)


def accuracy_loop(scores, ratings, min_gap):
    outcomes = []
    for (s1, r1), (s2, r2) in itertools.combinations(zip(scores, ratings, strict=True), 2):
        if abs(r1 - r2) > min_gap:
            outcomes.append(0.5 if s1 == s2 else float((s1 > s2) == (r1 > r2)))
    return (sum(outcomes) / len(outcomes) if outcomes else math.nan), len(outcomes)


@given(st.lists(st.tuples(values, values), max_size=12), st.sampled_from([0.0, 1.0, 2.5]))
def test_equals_the_loop_over_all_pairs(rows, min_gap):
    scores, ratings = [s for s, _ in rows], [r for _, r in rows]
    result = order_accuracy(scores, ratings, min_gap=min_gap)
    expected, num_pairs = accuracy_loop(scores, ratings, min_gap)
    assert result.accuracy == pytest.approx(expected, nan_ok=True)
    assert result.num_pairs == num_pairs


def test_order_alone_counts():
    ratings = np.linspace(-4, 4, 30)
    assert order_accuracy(np.exp(ratings), ratings) == (1.0, 30 * 29 // 2)
    assert order_accuracy(-ratings, ratings).accuracy == 0
    assert order_accuracy(np.zeros(30), ratings).accuracy == 0.5


def test_gap_is_exclusive():
    assert order_accuracy([0, 1, 2], [0, 1, 2], min_gap=1.0) == (1.0, 1)


@pytest.mark.parametrize(
    ("scores", "ratings"), [([1], [1, 2]), ([[1]], [[1]]), ([math.nan, 1], [1, 2])]
)
def test_bad_arguments_are_refused(scores, ratings):
    with pytest.raises(DataError):
        order_accuracy(scores, ratings)
