import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.statistics import mean_difference, win_rate

RANDOM = np.random.default_rng(7)


def test_interval_agrees_with_the_normal_one_for_many_pairs():
    before = RANDOM.normal(size=2000)
    after = before + RANDOM.normal(0.3, 1.5, size=2000)
    estimate = mean_difference(after, before)
    differences = after - before
    half = 1.96 * differences.std() / math.sqrt(2000)
    assert estimate.value == pytest.approx(differences.mean())
    assert estimate.low == pytest.approx(differences.mean() - half, abs=0.05 * half)
    assert estimate.high == pytest.approx(differences.mean() + half, abs=0.05 * half)
    assert estimate.n == 2000


def test_pairing_counts():
    """What varies between prompts, but not between policies, must not widen the interval."""
    before = RANDOM.normal(0, 100, size=50)
    estimate = mean_difference(before + 1, before)
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((1, 1, 1))


def test_the_interval_holds_the_truth_as_often_as_it_says():
    truth = 0.5
    hits = 0
    for trial in range(200):
        noise = RANDOM.normal(truth, 1, size=60)
        estimate = mean_difference(noise, np.zeros(60), num_resamples=400, seed=trial)
        hits += estimate.low <= truth <= estimate.high
    assert 178 <= hits <= 200  # 95 % of 200, and four standard deviations


def test_seed_and_blocks(monkeypatch):
    after, before = RANDOM.normal(size=(2, 30))
    first = mean_difference(after, before, num_resamples=500, seed=1)
    assert first == mean_difference(after, before, num_resamples=500, seed=1)
    assert first != mean_difference(after, before, num_resamples=500, seed=2)
    monkeypatch.setattr("lit_rlhf.evaluation.statistics._MAX_DRAWS_AT_ONCE", 700)
    assert first == mean_difference(after, before, num_resamples=500, seed=1)


def test_more_confidence_is_a_wider_interval():
    after, before = RANDOM.normal(size=(2, 30))
    narrow = mean_difference(after, before, confidence=0.8)
    wide = mean_difference(after, before, confidence=0.99)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=30))
def test_win_rate_counts_ties_half_and_mirrors(differences):
    zeros = [0.0] * len(differences)
    estimate = win_rate(differences, zeros)
    expected = sum({-1.0: 0, 0.0: 0.5, 1.0: 1}[value] for value in differences)
    assert estimate.value == pytest.approx(expected / len(differences))
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high
    mirrored = win_rate(zeros, differences)
    assert (1 - mirrored.high, 1 - mirrored.value, 1 - mirrored.low) == pytest.approx(
        (estimate.low, estimate.value, estimate.high)
    )


def test_wilson_interval():
    # 8 of 10 wins: 0.49 to 0.94 by Wilson's formula (published in many tables).
    estimate = win_rate([1] * 8 + [0] * 2, [0] * 8 + [1] * 2)
    assert estimate.low == pytest.approx(0.4902, abs=5e-5)
    assert estimate.high == pytest.approx(0.9433, abs=5e-5)
    assert estimate.n == 10


def test_tie_margin():
    assert win_rate([1.0, 1.3], [1.1, 1.0], tie_margin=0.2).value == 0.75


@pytest.mark.parametrize("function", [mean_difference, win_rate])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1, 2], [1], "same length"),
        ([], [], "at least one"),
        ([[1, 2]], [[1, 2]], "one score a prompt"),
        ([1, math.nan], [1, 2], "not finite"),
        ([1, 2], [1, math.inf], "not finite"),
    ],
)
def test_bad_scores_are_refused(function, first, second, message):
    with pytest.raises(DataError, match=message):
        function(first, second)
