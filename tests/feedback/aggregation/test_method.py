import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.feedback import Comparison, JudgedGroup, JudgedPair, judged_pairs, mean_ratings
from lit_rlhf.feedback.aggregation import (
    BetaMean,
    BradleyTerry,
    Majority,
    OneCoinDawidSkene,
    PlackettLuce,
)
from tests.oracles.aggregation import preference_shares

ALL = [BetaMean(), BradleyTerry(), PlackettLuce(), OneCoinDawidSkene(accuracies={})]
SCORES = st.one_of(st.none(), st.integers(-2, 2).map(float))


@st.composite
def judgments(draw):
    """A few labelers' scores of two to four responses, with ties and gaps."""
    num_responses = draw(st.integers(2, 4))
    labeler = st.tuples(*[SCORES] * num_responses)
    return tuple(draw(st.lists(labeler, min_size=1, max_size=5)))


def group(labelers, field="ratings", **options):
    responses = tuple(f"response {i}" for i in range(len(labelers[0])))
    return JudgedGroup("prompt", responses, **{field: labelers}, **options)


@given(judgments(), st.sampled_from(["ratings", "rankings"]))
def test_pairs_equal_the_oracle(labelers, field):
    shares = preference_shares(labelers, larger_is_better=field == "ratings")
    pairs = judged_pairs(group(labelers, field))
    judged = [pair for pair in itertools.combinations(range(len(labelers[0])), 2) if pair in shares]
    assert [tuple(sorted((pair.chosen, pair.rejected))) for pair in pairs] == judged
    for pair in pairs:
        assert pair.probability == float(shares[pair.chosen, pair.rejected])
        assert pair.probability >= 0.5


@given(judgments(), st.randoms(use_true_random=False))
def test_the_order_of_labelers_changes_nothing(labelers, random):
    shuffled = list(labelers)
    random.shuffle(shuffled)
    assert judged_pairs(group(tuple(shuffled))) == judged_pairs(group(labelers))


@given(judgments())
def test_reversing_the_responses_mirrors_the_pairs(labelers):
    last = len(labelers[0]) - 1
    reversed_labelers = tuple(scores[::-1] for scores in labelers)
    mirrored = {
        frozenset((last - pair.chosen, last - pair.rejected)): pair.probability
        for pair in judged_pairs(group(reversed_labelers))
    }
    direct = {
        frozenset((pair.chosen, pair.rejected)): pair.probability
        for pair in judged_pairs(group(labelers))
    }
    assert mirrored == direct


def test_a_worked_example():
    # Labelers 1 and 2 prefer response 1, labeler 3 prefers 0, labeler 4 sees a tie: 2.5 of 4.
    labelers = ((1.0, 2.0), (0.0, 3.0), (2.0, 1.0), (1.0, 1.0))
    assert judged_pairs(group(labelers, weight=2.0)) == [JudgedPair(1, 0, 0.625, 2.0)]


def test_a_small_position_is_the_better_one():
    assert judged_pairs(group(((1.0, 2.0, None),), "rankings")) == [JudgedPair(0, 1, 1.0, 1.0)]


def test_a_pair_without_a_common_labeler_is_left_out():
    assert judged_pairs(group(((1.0, None), (None, 2.0)))) == []


def test_a_tie_keeps_the_order_of_the_responses():
    assert judged_pairs(group(((1.0, 1.0),))) == [JudgedPair(0, 1, 0.5, 1.0)]


@pytest.mark.parametrize(
    ("probability", "expected"),
    [
        (1.0, JudgedPair(0, 1, 1.0, 3.0)),
        (0.5, JudgedPair(0, 1, 0.5, 3.0)),
        (0.25, JudgedPair(1, 0, 0.75, 3.0)),
    ],
)
def test_a_comparison_is_the_smallest_group(probability, expected):
    comparison = Comparison("prompt", "a", "b", probability=probability, weight=3.0)
    assert judged_pairs(comparison) == [expected]


def test_mean_ratings_skip_gaps():
    labelers = ((1.0, None, None), (2.0, 4.0, None))
    assert mean_ratings(group(labelers)) == [1.5, 4.0, None]


def test_mean_ratings_refuse_rankings():
    with pytest.raises(DataError, match="need 'ratings'"):
        mean_ratings(group(((1.0, 2.0),), "rankings"))


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


def test_most_labelers_are_right_and_ties_weigh_nothing():
    ratings = ((1.0, 2.0, 2.0), (1.0, 2.0, 2.0), (3.0, 2.0, 2.0))
    group = JudgedGroup("Q", ("a", "b", "c"), ratings=ratings, weight=2.0)
    assert Majority().pairs(group) == [
        JudgedPair(1, 0, 1.0, 2.0),
        JudgedPair(2, 0, 1.0, 2.0),
        JudgedPair(1, 2, 1.0, 0.0),
    ]


def test_comparisons_lose_their_doubt_as_well():
    assert Majority().pairs(Comparison("Q", "a", "b", 0.3)) == [JudgedPair(1, 0, 1.0, 1.0)]
    assert Majority().pairs(Comparison("Q", "a", "b", 0.5)) == [JudgedPair(0, 1, 1.0, 0.0)]
