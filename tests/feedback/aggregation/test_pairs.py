import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.errors import DataError
from lit_rlhf.feedback import Comparison, JudgedGroup, JudgedPair, judged_pairs, mean_ratings
from tests.oracles.aggregation import preference_shares

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
