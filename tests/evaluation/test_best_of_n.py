import math
from itertools import combinations

import numpy as np
import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.best_of_n import best_of_n_kl, best_of_n_scores

RANDOM = np.random.default_rng(5)


def over_all_subsets(proxy, judged, n):
    """Judge the best of each subset of n samples; those that tie share."""
    values = []
    for subset in combinations(range(len(proxy)), n):
        best = max(proxy[index] for index in subset)
        values.append(np.mean([judged[index] for index in subset if proxy[index] == best]))
    return np.mean(values)


@pytest.mark.parametrize("ties", [False, True])
def test_it_is_the_mean_over_all_subsets(ties):
    proxy, judged = RANDOM.normal(size=(2, 3, 7))
    if ties:
        proxy = np.round(proxy)
    results = best_of_n_scores(proxy, judged, [1, 2, 5, 7])
    for n, values in results.items():
        expected = [over_all_subsets(*row, n) for row in zip(proxy, judged, strict=True)]
        assert values == pytest.approx(expected, rel=1e-12)
    assert results[1] == pytest.approx(judged.mean(1))


def test_it_agrees_with_drawing_n_samples():
    """The best of n uniform numbers is n / (n + 1) on average."""
    samples = RANDOM.random(size=(4000, 16))
    for n, values in best_of_n_scores(samples, samples, [1, 4, 16]).items():
        assert values.mean() == pytest.approx(n / (n + 1), abs=0.01)


def test_kl_of_the_best_of_n_by_its_density():
    """Best-of-n of a continuous reward has the density n u^(n-1) against the uniform u."""
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in (2, 4, 16):
        density = n * u ** (n - 1)
        assert best_of_n_kl(n) == pytest.approx((density * np.log(density)).mean(), abs=1e-4)
    assert best_of_n_kl(1) == 0
    assert math.isfinite(best_of_n_kl(10**6))


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match=r"\[P, N\] each"):
        best_of_n_scores([[1, 2]], [[1, 2, 3]], [1])
    with pytest.raises(DataError, match=r"best of \[0, 3\] out of 2"):
        best_of_n_scores([[1, 2]], [[1, 2]], [0, 1, 3])
