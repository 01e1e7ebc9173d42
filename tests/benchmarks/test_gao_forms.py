import math

import numpy as np
import pytest

from benchmarks.overoptimization.gao_forms import fit_best_of_n, fit_rl
from lit_rlhf.errors import DataError

DISTANCES = [0.0, 0.3, 0.7, 1.1, 1.9, 2.6, 3.4]
FORMS = {
    fit_best_of_n: lambda d, a, b: d * (a - b * d),
    fit_rl: lambda d, a, b: d * (a - b * math.log(d)) if d else 0.0,
}


@pytest.mark.parametrize("fit", FORMS)
@pytest.mark.parametrize("start", [None, -0.7])
def test_a_curve_of_the_form_is_found_again(fit, start):
    rewards = [FORMS[fit](d, 1.3, 0.4) + (start or 0.0) for d in DISTANCES]
    found = fit(DISTANCES, rewards, with_start=start is not None)
    assert (found.alpha, found.beta, found.start) == pytest.approx((1.3, 0.4, start or 0.0))
    assert found.rmse == pytest.approx(0, abs=1e-12)
    assert found.predict(DISTANCES) == pytest.approx(rewards)


@pytest.mark.parametrize("fit", FORMS)
def test_the_fit_is_the_best_of_all_near_it(fit):
    """No step away from it, in any direction, lowers the sum of squares."""
    draw = np.random.default_rng(0)
    rewards = [FORMS[fit](d, 1.0, 0.3) + 0.2 * draw.standard_normal() for d in DISTANCES]

    def loss(alpha, beta, start):
        predicted = [start + FORMS[fit](d, alpha, beta) for d in DISTANCES]
        return sum((p - r) ** 2 for p, r in zip(predicted, rewards, strict=True))

    found = fit(DISTANCES, rewards, with_start=True)
    best = loss(found.alpha, found.beta, found.start)
    assert math.sqrt(best / len(DISTANCES)) == pytest.approx(found.rmse)
    for change in draw.standard_normal((50, 3)) * 1e-3:
        moved = np.array([found.alpha, found.beta, found.start]) + change
        assert loss(*moved) > best


@pytest.mark.parametrize("fit", FORMS)
def test_the_peak_is_where_the_curve_turns(fit):
    found = fit(DISTANCES, [FORMS[fit](d, 1.3, 0.7) for d in DISTANCES])
    grid = np.linspace(0.01, 5, 5000)
    assert found.peak == pytest.approx(grid[found.predict(grid).argmax()], abs=2e-3)


@pytest.mark.parametrize("fit", FORMS)
def test_a_curve_that_rises_for_ever_has_no_peak(fit):
    assert fit(DISTANCES, [FORMS[fit](d, 1.0, -0.2) for d in DISTANCES]).peak is None
    assert fit(DISTANCES, DISTANCES).peak is None or fit is fit_best_of_n


@pytest.mark.parametrize(
    ("distances", "rewards", "with_start", "message"),
    [
        ([1.0, 2.0], [1.0], False, "expected one of each"),
        ([-1.0, 2.0, 3.0], [1.0, 1.0, 1.0], False, "negative distance"),
        ([1.0, math.nan], [1.0, 1.0], False, "not finite"),
        ([0.0, 1.0, 1.0], [0.0, 1.0, 1.0], False, "1 different distances"),
        ([0.0, 1.0], [0.0, 1.0], True, "at least 3"),
    ],
)
def test_what_determines_no_curve_is_refused(distances, rewards, with_start, message):
    for fit in FORMS:
        with pytest.raises(DataError, match=message):
            fit(distances, rewards, with_start=with_start)
