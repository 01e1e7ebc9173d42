import itertools
import math

import numpy as np
import pytest

from lit_rlhf.overoptimization import best_of_n_kl, best_of_n_scores


def mean_over_subsets(proxy, judged, n):
    """Try every subset; of equal proxies each is picked as often."""
    picks = []
    for subset in itertools.combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in subset)
        tied = [judged[i] for i in subset if proxy[i] == best]
        picks.append(sum(tied) / len(tied))
    return sum(picks) / len(picks)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_the_estimate_is_the_mean_over_all_subsets(n):
    draw = np.random.default_rng(0)
    proxy, judged = draw.standard_normal((2, 3, 6))
    proxy[2] = [0, 0, 1, 1, 1, 2]  # ties
    expected = [mean_over_subsets(p, j, n) for p, j in zip(proxy, judged, strict=True)]
    assert best_of_n_scores(proxy, judged, [n])[n] == pytest.approx(expected)


def test_a_proxy_that_judges_itself_never_falls():
    scores = np.random.default_rng(0).standard_normal((4, 16))
    curve = best_of_n_scores(scores, scores, [1, 2, 4, 8, 16])
    assert curve[16] == pytest.approx(scores.max(axis=1))
    means = [values.mean() for values in curve.values()]
    assert means == sorted(means)


def test_the_kl_of_a_choice_among_equals():
    """Best of n of m equally likely responses, each with another reward: the KL term by term."""
    m, n = 2000, 4
    ranks = np.arange(1, m + 1)
    chosen = (ranks / m) ** n - ((ranks - 1) / m) ** n
    exact = float((chosen * np.log(chosen * m)).sum())
    assert best_of_n_kl(n) == pytest.approx(exact, abs=2e-3)
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(n) == pytest.approx(math.log(4) - 0.75)
