"""The labels and intervals of `benchmarks.averaging`; its run takes minutes."""

import math

import pytest

from benchmarks.averaging import label_of
from benchmarks.averaging_report import interval


@pytest.mark.parametrize(
    ("kind", "expected"), [("share", 0.625), ("shrunk share", 0.6), ("majority vote", 1.0)]
)
def test_a_label_by_hand(kind, expected):
    first, second = [3, 1, 0, 2], [1, 1, 1, 0]  # for the first, a tie, for the second, the first
    assert label_of(first, second, kind) == pytest.approx(expected)
    assert label_of(second, first, kind) == pytest.approx(1 - expected)


def test_a_tied_vote_is_one_half():
    assert label_of([1, 0], [0, 1], "majority vote") == 0.5


def test_the_interval_is_students():
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.303 / math.sqrt(3), abs=1e-3))
