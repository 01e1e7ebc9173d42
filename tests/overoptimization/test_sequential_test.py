import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest

from benchmarks.overoptimization.simulated import (
    NULLS,
    ONE_SIDED,
    RARE_WINS,
    diverging_curves,
    first_alarms,
    null_curves,
)
from lit_rlhf.errors import ConfigError
from lit_rlhf.overoptimization import DivergenceTest
from lit_rlhf.overoptimization.sequential_test import SIGNS_CONSTANT

NUM_CURVES = 2000
TEST = DivergenceTest(0.05)


def random_looks(num_looks, num_prompts, seed=0):
    draw = np.random.default_rng(seed)
    return draw.standard_normal((num_looks, num_prompts)), draw.standard_normal(
        (num_looks, num_prompts)
    )


def contrast_by_hand(test, validation, proxy, number, start):
    """Every contrast in plain Python: the smallest of the paid p-values and where it is."""
    last = len(validation) - 1
    found = []
    for window in test.windows:
        for end in range(last + 1):
            first = end - window + 1
            if first < start or end > last - window:
                continue
            found.append((p_by_hand(test, validation, proxy, window, first), window, end))
    spent = number * (number + 1)
    p, window, end = min(found)
    return min(1.0, p * len(found) * spent), window, end


def p_by_hand(test, validation, proxy, window, first):
    ps = []
    for values, sign, margin in ((validation, -1, test.min_fall), (proxy, 1, 0.0)):
        differences = []
        for prompt in range(len(values[0])):
            now = sum(values[-1 - i][prompt] for i in range(window)) / window
            before = sum(values[first + i][prompt] for i in range(window)) / window
            differences.append(sign * (now - before) - margin)
        n = len(differences)
        mean = sum(differences) / n
        z = sum(differences) / math.sqrt(sum(d * d for d in differences))
        moments = [sum((d - mean) ** power for d in differences) / n for power in (2, 3)]
        z += min(0.0, moments[1] / moments[0] ** 1.5) * (1 + 2 * z * z) / (6 * math.sqrt(n))
        constant = 1 / (4 * (1 - NormalDist().cdf(math.sqrt(2))))
        ps.append(constant * (1 - NormalDist().cdf(z)))
    return max(ps)


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("min_fall", [0.0, 0.2])
def test_the_contrast_is_that_of_plain_python(start, min_fall):
    test = DivergenceTest(0.05, min_fall, windows=(1, 2, 3))
    validation, proxy = random_looks(9, 24)
    validation[-3:] -= 1.5
    proxy[-2:] += 1.0
    found = test.examine(validation, proxy, number=8, start=start)
    p, window, end = contrast_by_hand(test, validation.tolist(), proxy.tolist(), 8, start)
    assert (found.window, found.reference) == (window, end)
    assert found.p_value == pytest.approx(p, rel=1e-6)


def test_the_levels_add_up_to_the_rate():
    total = sum(TEST.level(number) for number in range(1, 10_000))
    assert total == pytest.approx(0.05, rel=1e-3)
    assert total < 0.05


def test_a_critical_value_is_where_the_p_value_is_the_rate():
    draw = np.random.default_rng(0)
    number, num_prompts = 3, 400
    critical = TEST.critical_value(number, 1)
    for wanted, fires in ((critical + 1e-6, True), (critical - 1e-6, False)):
        noise = draw.standard_normal(num_prompts // 2)
        noise = np.r_[noise, -noise]  # without skewness
        # mean m and variance v with z = sqrt(n) m / sqrt(m^2 + v)
        m = wanted * math.sqrt(np.mean(noise**2) / (num_prompts - wanted**2))
        looks = np.stack([np.zeros(num_prompts), -(noise + m)])
        found = TEST.examine(looks, -looks, number=number)
        assert (found.p_value <= 0.05) is fires


def test_the_bound_holds_for_every_sum_of_signs():
    """All 2^12 sums of many weights, against Bentkus and Dzindzalieta's bound at each of them."""
    draw = np.random.default_rng(1)
    signs = np.array(list(itertools.product((-1, 1), repeat=12)))
    weights = [np.ones(12), *draw.random((20, 12)), *draw.standard_cauchy((20, 12))]
    weights += [np.r_[np.ones(k), np.zeros(12 - k)] for k in (1, 2, 3, 4)]
    tightest = 0.0
    for weight in weights:
        z = np.sort(signs @ (weight / np.linalg.norm(weight)))
        share_above = 1 - np.arange(len(z)) / len(z)
        positive = z > 1e-9
        first_of_equals = np.r_[True, np.diff(z) > 1e-9] & positive
        bound = np.array([SIGNS_CONSTANT * 0.5 * math.erfc((x - 1e-9) / math.sqrt(2)) for x in z])
        assert (share_above <= bound)[first_of_equals].all()
        tightest = max(tightest, (share_above / bound)[first_of_equals].max())
    assert tightest > 0.99  # a smaller constant would be too small


@pytest.mark.parametrize("name", [*NULLS, ONE_SIDED])
def test_false_alarms_are_no_more_than_stated(name):
    alarms = first_alarms(TEST, null_curves(name, NUM_CURVES, seed=3))
    assert np.mean(alarms >= 0) <= 0.05


def test_rare_wins_need_enough_prompts():
    """Stated in docs/guides/overoptimization.md: some six of the prompts should win."""
    few, enough = (
        np.mean(first_alarms(TEST, null_curves(RARE_WINS, 500, seed=3, n=n)) >= 0)
        for n in (64, 256)
    )
    assert few > 0.2
    assert enough <= 0.05


def test_a_fall_up_to_the_margin_is_no_alarm():
    curves = diverging_curves(500, 0, num_looks=14, n=256, fall=0.05)
    lost = 0.05 * 9
    tolerant = DivergenceTest(0.05, min_fall=lost)
    assert np.mean(first_alarms(tolerant, curves) >= 0) <= 0.05
    assert np.mean(first_alarms(TEST, curves) >= 0) > 0.5


def test_divergence_is_found():
    """Stated in docs/guides/overoptimization.md: 256 prompts, a fall of 0.1 deviations a look."""
    curves = diverging_curves(500, 0, num_looks=17, n=256, fall=0.1)
    alarms = first_alarms(TEST, curves)
    assert (alarms < 0).sum() == 0
    assert np.quantile(alarms, 0.9) <= 4 + 5


def test_windows_find_a_slow_fall_sooner():
    curves = diverging_curves(300, 0, num_looks=13, n=64, fall=0.08)
    with_windows = first_alarms(TEST, curves) >= 0
    without = first_alarms(DivergenceTest(0.05, windows=(1,)), curves) >= 0
    assert with_windows.mean() > without.mean() + 0.1


def test_a_prompt_without_a_score_is_as_one_that_is_not_there():
    draw = np.random.default_rng(3)
    validation, proxy = draw.normal(size=(2, 6, 12)) + np.arange(6)[:, None] * [[[-1]], [[1]]]
    gap = validation.copy()
    gap[:, 4] = np.nan
    without = (np.delete(values, 4, axis=1) for values in (validation, proxy))
    scores, expected = TEST.scores(gap, proxy), TEST.scores(*without)
    assert np.allclose(scores.fall, expected.fall, atol=1e-12)
    gap = validation.copy()
    gap[2, 4] = np.nan  # in this validation alone: contrasts without it are as before
    is_in = TEST.scores(gap, proxy).fall != TEST.scores(validation, proxy).fall
    whole = TEST.scores(validation, proxy)
    first = whole.references - whole.windows + 1
    assert (is_in == ((first <= 2) & (whole.references >= 2))).all()


def test_nothing_to_compare_with():
    looks = np.zeros((1, 4))
    assert TEST.examine(looks, looks, number=1) is None
    looks = np.zeros((3, 4))
    assert TEST.examine(looks, looks, number=1, start=2) is None
    assert TEST.examine(looks, looks, number=1).p_value == 1  # equal responses tell nothing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"false_alarm_rate": 0.0}, "false_alarm_rate is 0.0"),
        ({"false_alarm_rate": 1.0}, "false_alarm_rate is 1.0"),
        ({"min_fall": -1.0}, "min_fall is -1.0"),
        ({"min_fall": math.inf}, "min_fall is inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DivergenceTest(**settings)
