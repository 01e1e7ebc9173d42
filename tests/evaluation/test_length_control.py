import math

import numpy as np
import pytest
import torch

from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.length_control import RIDGE, length_controlled_win_rate

RANDOM = np.random.default_rng(11)


def simulate(intercept, slope, num_prompts, random=RANDOM):
    lengths, opponent_lengths = random.integers(20, 400, size=(2, num_prompts))
    difference = (lengths - opponent_lengths).astype(float)
    log_odds = intercept + slope * np.tanh(difference / difference.std())
    outcomes = (random.random(num_prompts) < 1 / (1 + np.exp(-log_odds))).astype(float)
    return outcomes, lengths, opponent_lengths


def test_the_fit_is_the_optimum_that_another_optimizer_finds():
    outcomes, lengths, opponent_lengths = simulate(0.4, 1.2, 150)
    outcomes[:20] = 0.5  # ties
    difference = torch.tensor(lengths - opponent_lengths, dtype=torch.float64)
    feature = torch.tanh(difference / difference.std(correction=0))
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, tolerance_grad=1e-12)

    def loss():
        optimizer.zero_grad()
        logits = parameters[0] + parameters[1] * feature
        value = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, torch.tensor(outcomes), reduction="sum"
        )
        value = value + RIDGE / 2 * parameters.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    a, b = parameters.tolist()
    result = length_controlled_win_rate(outcomes, lengths, opponent_lengths, num_resamples=50)
    assert result.win_rate.value == pytest.approx(1 / (1 + math.exp(-a)), abs=1e-6)
    assert result.length_effect.value == pytest.approx(b * math.tanh(1), abs=1e-5)


def test_a_judge_that_pays_for_length_alone_is_seen_through():
    outcomes, lengths, opponent_lengths = simulate(0.0, 2.5, 400)
    long_winded = lengths + 150
    outcomes = np.where(long_winded > opponent_lengths, 1.0, 0.0)
    result = length_controlled_win_rate(outcomes, long_winded, opponent_lengths, num_resamples=100)
    assert outcomes.mean() > 0.65
    assert result.win_rate.value == pytest.approx(0.5, abs=0.1)
    assert result.length_effect.low > 1


def test_intervals_hold_the_truth_at_the_nominal_rate():
    """200 data sets: a rate of 95 % has a deviation of 1.5 %."""
    truth = 1 / (1 + math.exp(-0.5))
    hits = 0
    for trial in range(200):
        random = np.random.default_rng(trial)
        data = simulate(0.5, 1.0, 80, random)
        estimate = length_controlled_win_rate(*data, num_resamples=300).win_rate
        hits += estimate.low <= truth <= estimate.high
    assert 180 <= hits <= 199


def test_a_policy_that_always_wins_has_a_finite_fit():
    result = length_controlled_win_rate(np.ones(30), np.arange(30), np.zeros(30))
    assert 0.95 < result.win_rate.value < 1
    draw = np.random.default_rng(0)
    for always in (0.0, 1.0):  # resamples would all agree; Wilson's interval, as published
        lengths = draw.integers(10, 200, (2, 20))
        rate = length_controlled_win_rate(np.full(20, always), *lengths).win_rate
        assert abs(always - rate.low) == pytest.approx(0.1611 if always else 0, abs=1e-4)
        assert abs(always - rate.high) == pytest.approx(0 if always else 0.1611, abs=1e-4)
        assert rate.low <= rate.value <= rate.high
    # Only the longer one ever wins: the slope goes far, but stays a number.
    lengths = np.tile([10, 90], 20)
    result = length_controlled_win_rate(lengths > 50, lengths, np.full(40, 50))
    assert result.win_rate.value == pytest.approx(0.5, abs=1e-6)
    assert math.isfinite(result.length_effect.high)


def test_equal_lengths_leave_the_win_rate_as_it_is():
    outcomes = RANDOM.choice([0, 0.5, 1], size=60)
    result = length_controlled_win_rate(outcomes, np.full(60, 7), np.full(60, 7))
    assert result.win_rate.value == pytest.approx(outcomes.mean(), abs=1e-3)
    assert result.length_effect.value == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], []), "at least one"),
        (([1], [1, 2], [1, 2]), "one of each"),
        (([1.2], [1], [2]), r"in \[0, 1\]"),
        (([math.nan], [1], [2]), r"in \[0, 1\]"),
    ],
)
def test_bad_values_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        length_controlled_win_rate(*arguments)
