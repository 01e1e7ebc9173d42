import pytest

from lit_rlhf.errors import ConfigError
from lit_rlhf.feedback import Comparison, JudgedGroup, judged_pairs
from lit_rlhf.feedback.aggregation import BetaMean, BradleyTerry, OneCoinDawidSkene, PlackettLuce

ALL = [BetaMean(), BradleyTerry(), PlackettLuce(), OneCoinDawidSkene(accuracies={})]


def votes(first, second, ties=0, **fields):
    """A pair with so many labelers for either response."""
    ratings = [(1.0, 0.0)] * first + [(0.0, 1.0)] * second + [(1.0, 1.0)] * ties
    names = tuple(f"labeler {i}" for i in range(len(ratings)))
    return JudgedGroup("prompt", ("a", "b"), ratings=tuple(ratings), labelers=names, **fields)


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (votes(1, 0), 1.5 / 2),
        (votes(15, 0), 15.5 / 16),
        (votes(2, 1, ties=1), 3 / 5),  # 2.5 of 4
        (votes(0, 0, ties=3), 0.5),
    ],
)
def test_the_beta_mean_by_hand(group, expected):
    (pair,) = BetaMean(prior=0.5).pairs(group)
    assert pair.probability == pytest.approx(expected)
    assert BetaMean(prior=0).pairs(group) == judged_pairs(group)


@pytest.mark.parametrize("method", ALL)
def test_swapping_the_responses_mirrors_the_pair(method):
    (pair,), (mirrored,) = method.pairs(votes(4, 1, 1)), method.pairs(votes(1, 4, 1))
    assert (pair.chosen, mirrored.chosen) == (0, 1)
    assert pair.probability == pytest.approx(mirrored.probability)
    assert 0.5 < pair.probability < 1


@pytest.mark.parametrize("method", ALL)
def test_more_labelers_of_one_opinion_are_surer_and_weights_stay(method):
    (few,), (many,) = method.pairs(votes(2, 0, weight=3)), method.pairs(votes(8, 0, weight=3))
    assert few.probability < many.probability < 1
    assert many.weight == 3


@pytest.mark.parametrize("method", ALL)
def test_a_comparison_keeps_its_probability(method):
    comparison = Comparison("prompt", "a", "b", probability=0.2, weight=2)
    assert method.pairs(comparison) == judged_pairs(comparison)


@pytest.mark.parametrize("method", ALL)
def test_pairs_that_nobody_judged_are_left_out(method):
    rankings = ((1.0, 2.0, None), (None, 1.0, 2.0))
    group = JudgedGroup("prompt", ("a", "b", "c"), rankings=rankings, labelers=("x", "y"))
    pairs = method.pairs(group)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [(0, 1), (1, 2)]


def test_negative_priors_are_refused():
    with pytest.raises(ConfigError, match="prior=-1"):
        BetaMean(prior=-1)
    with pytest.raises(ConfigError, match="precision=0"):
        BradleyTerry(precision=0)
    with pytest.raises(ConfigError, match="above 0"):
        OneCoinDawidSkene(prior_right=0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        OneCoinDawidSkene(accuracies={"ana": 1.0})
