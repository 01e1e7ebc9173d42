import math

import numpy as np
import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.bootstrap import (
    bootstrap,
    cluster_sums,
    mean,
    ratio,
    share,
)

RANDOM = np.random.default_rng(3)


def coverage(intervals, truth):
    return np.mean([low <= truth <= high for _, low, high, _ in intervals])


@pytest.mark.parametrize("num_prompts", [8, 30])
def test_intervals_of_a_mean_hold_the_truth_at_the_nominal_rate(num_prompts):
    """600 data sets: a rate of 95 % has a deviation of 0.9 %."""
    data = RANDOM.normal(0.3, 2, size=(600, num_prompts))
    estimates = [mean(row, seed=index) for index, row in enumerate(data)]
    assert 0.92 <= coverage(estimates, 0.3) <= 0.98


def test_intervals_of_a_win_rate_with_ties_hold_the_truth_at_the_nominal_rate():
    outcomes = RANDOM.choice([0, 0.5, 1], p=[0.3, 0.2, 0.5], size=(600, 40))
    estimates = [share(row, seed=index) for index, row in enumerate(outcomes)]
    assert 0.92 <= coverage(estimates, 0.6) <= 0.98


def test_intervals_of_a_ratio_of_dependent_values_hold_the_truth_at_the_nominal_rate():
    """Tokens of one prompt are alike: taken for independent ones, they would claim too much."""
    tokens = RANDOM.integers(1, 30, size=(600, 40))
    level = RANDOM.normal(1, 0.5, size=tokens.shape)  # of each prompt, shared by its tokens
    estimates = [
        ratio(row * lengths, lengths, seed=index)
        for index, (row, lengths) in enumerate(zip(level, tokens, strict=True))
    ]
    assert 0.92 <= coverage(estimates, 1) <= 0.98
    naive = 1.96 * 0.5 / np.sqrt(tokens.sum(1))
    values = np.array([value for value, *_ in estimates])
    assert np.mean(np.abs(values - 1) <= naive) < 0.6


def test_the_mean_agrees_with_the_t_interval():
    values = RANDOM.normal(size=12)
    value, low, high, n = mean(values)
    half = 2.201 * values.std(ddof=1) / math.sqrt(12)  # 11 degrees of freedom
    assert (value, n) == (pytest.approx(values.mean()), 12)
    assert low == pytest.approx(values.mean() - half, abs=0.2 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.2 * half)


def test_pairing_and_blocks(monkeypatch):
    """Blocks bound the memory; what is drawn stays the same."""
    values = RANDOM.normal(size=50)
    whole = mean(values)
    monkeypatch.setattr("lit_rlhf.evaluation.bootstrap._MAX_DRAWS_AT_ONCE", 3000)
    assert mean(values) == whole
    assert mean(values, seed=1) != whole


def test_a_ratio_is_over_tokens_not_over_prompts():
    assert ratio([1, 30], [1, 10]).value == pytest.approx(31 / 11)
    assert math.isnan(ratio([0, 0], [0, 0]).value)


def test_only_wins_are_not_certain():
    estimate = share(np.ones(20))
    assert (estimate.value, estimate.high) == (1, 1)
    assert estimate.low == pytest.approx(0.8389, abs=1e-4)  # Wilson's for 20 of 20, as published
    assert share(np.zeros(20)).high == pytest.approx(1 - 0.8389, abs=1e-4)
    # Prompts that do not count make nothing more certain.
    weighted = share(np.ones(40), np.repeat([1, 0], 20))
    assert weighted.low == pytest.approx(0.8389, abs=1e-4)


def test_one_prompt_says_nothing_of_its_spread():
    value, low, high, n = mean([2.5])
    assert (value, n) == (2.5, 1)
    assert math.isnan(low)
    assert math.isnan(high)


def test_resamples_without_anything_that_counts_are_left_out():
    estimate = ratio([1, 0, 0], [2, 0, 0])
    assert estimate[:3] == pytest.approx((0.5, 0.5, 0.5))


def test_every_unit_counts_once_in_the_value_and_n_times_in_all_in_a_resample():
    seen = []
    bootstrap(lambda counts: seen.append(counts) or counts[:, 0], 5, num_resamples=7)
    assert seen[0].tolist() == [[1, 1, 1, 1, 1]]
    assert seen[1].shape == (7, 5)
    assert (seen[1].sum(1) == 5).all()


def test_cluster_sums():
    assert cluster_sums([1, 2, 4], [1, 0, 1], 3).tolist() == [2, 5, 0]
    assert cluster_sums([[1, 2], [3, 4]], [0, 0], 1).tolist() == [[4, 6]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean([]), "at least one"),
        (lambda: mean([1, math.nan]), "finite"),
        (lambda: mean([[1, 2]]), "one finite number a prompt"),
        (lambda: ratio([1, 2], [1]), "2 numerators and 1 denominators"),
        (lambda: share([0.5, 1.5]), r"in \[0, 1\]"),
        (lambda: bootstrap(lambda counts: counts[:, 0], 0), "at least one prompt"),
    ],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
