import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from lit_rlhf.feedback import JudgedGroup
from lit_rlhf.feedback.aggregation import BradleyTerry, PlackettLuce

ALMOST_NONE = 1e-9
POSITIONS = st.one_of(st.none(), st.integers(1, 3).map(float))


def group(*rankings):
    return JudgedGroup("prompt", tuple("abcdefghi"[: len(rankings[0])]), rankings=rankings)


def orders_of(ranking):
    """All orders, the best first, that a ranking with ties allows; those not ranked left out."""
    judged = [i for i, position in enumerate(ranking) if position is not None]
    return [
        order
        for order in itertools.permutations(judged)
        if all(ranking[a] <= ranking[b] for a, b in itertools.pairwise(order))
    ]


def log_likelihood(strengths, rankings, is_whole):
    total = 0.0
    for ranking in rankings:
        if is_whole:  # Plackett-Luce: the mean over the orders that ties allow
            orders = orders_of(ranking)
            for order in orders:
                for place, best in enumerate(order):
                    left = [math.exp(strengths[i]) for i in order[place:]]
                    total += (strengths[best] - math.log(sum(left))) / len(orders)
            continue
        for a, b in itertools.combinations(range(len(ranking)), 2):
            if None in (ranking[a], ranking[b]):
                continue
            share = 0.5 if ranking[a] == ranking[b] else float(ranking[a] < ranking[b])
            odds = strengths[a] - strengths[b]
            total += share * odds - math.log1p(math.exp(odds))
    return total


@pytest.mark.parametrize(("method", "is_whole"), [(BradleyTerry, False), (PlackettLuce, True)])
@given(st.lists(st.tuples(*[POSITIONS] * 4), min_size=1, max_size=4))
def test_strengths_maximise_the_likelihood_of_the_definition(method, is_whole, rankings):
    ours = method(precision=0.7).strengths(group(*rankings))

    def loss(strengths):
        return 0.35 * strengths @ strengths - log_likelihood(strengths, rankings, is_whole)

    best = minimize(loss, np.zeros(4), tol=1e-10)
    assert ours == pytest.approx(best.x, abs=1e-4)
    assert sum(ours) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("method", [BradleyTerry, PlackettLuce])
def test_three_wins_to_one_are_a_difference_of_ln_3(method):
    strengths = method(precision=ALMOST_NONE).strengths(group(*[(1.0, 2.0)] * 3, (2.0, 1.0)))
    assert strengths[0] - strengths[1] == pytest.approx(math.log(3), abs=1e-5)


@given(st.lists(st.tuples(*[POSITIONS] * 2), min_size=1, max_size=6))
def test_of_two_responses_both_are_the_same_model(rankings):
    first = BradleyTerry().strengths(group(*rankings))
    assert PlackettLuce().strengths(group(*rankings)) == pytest.approx(first, abs=1e-7)


@given(st.lists(st.tuples(*[POSITIONS] * 3), min_size=1, max_size=4), st.permutations(range(3)))
def test_relabeling_the_responses_permutes_the_strengths(rankings, order):
    for method in (BradleyTerry(), PlackettLuce()):
        strengths = method.strengths(group(*rankings))
        permuted = method.strengths(group(*[tuple(row[i] for i in order) for row in rankings]))
        assert permuted == pytest.approx(strengths[list(order)], abs=1e-7)


def test_the_strengths_that_crowd_kit_stops_short_of():
    # Shares of maximum likelihood for these wins, solved by hand: a beats b 3:1, b beats c 3:1.
    rankings = [(1.0, 2.0, None)] * 3 + [(2.0, 1.0, None)]
    rankings += [(None, 1.0, 2.0)] * 3 + [(None, 2.0, 1.0)]
    powers = np.exp(BradleyTerry(precision=ALMOST_NONE).strengths(group(*rankings)))
    assert powers / powers.sum() == pytest.approx([9 / 13, 3 / 13, 1 / 13], abs=1e-5)


def test_nine_tied_responses_are_quick_and_equal():
    strengths = PlackettLuce().strengths(group((1.0,) * 9))
    assert strengths == pytest.approx(np.zeros(9), abs=1e-9)


def test_a_very_sure_prior_and_many_judgments_converge():
    for precision in (1e-6, 1e6):
        strengths = BradleyTerry(precision).strengths(group(*[(1.0, 2.0, 3.0)] * 200))
        assert np.isfinite(strengths).all()
        assert strengths[0] > strengths[1] > strengths[2]
