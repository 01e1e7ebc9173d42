import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.feedback.agreement import (
    ALL_ALIKE,
    NO_OVERLAP,
    Estimate,
    Undefined,
    cohen_kappa,
    fleiss_kappa,
    kendall_w,
    krippendorff_alpha,
    patterns_of,
    percent_agreement,
    with_interval,
)

LEVELS = ("nominal", "ordinal", "interval", "ratio")
N = None
# Krippendorff (2011): four coders, twelve units.
FOUR_CODERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]
THREE_CODERS = [
    [N, N, N, N, N, 3, 4, 1, 2, 1, 1, 3, 3, N, 3],
    [1, N, 2, 1, 3, 3, 4, 3, N, N, N, N, N, N, N],
    [N, N, 2, 1, 3, 4, 4, N, 2, 1, 1, 3, 3, N, 4],
]


def counts_of(coders):
    values = sorted({value for row in coders for value in row if value is not None})
    columns = list(zip(*coders, strict=True))
    counts = [[column.count(value) for value in values] for column in columns]
    return np.array(counts), values


def alpha(coders, level):
    counts, values = counts_of(coders)
    return krippendorff_alpha(patterns_of(counts), values, level)


@pytest.mark.parametrize(
    ("level", "expected"),
    [("nominal", 0.743421), ("ordinal", 0.815388), ("interval", 0.849107), ("ratio", 0.797403)],
)
def test_alpha_of_the_published_example(level, expected):
    assert alpha(FOUR_CODERS, level) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("level", "expected"), [("nominal", 0.691358), ("interval", 0.810845)])
def test_alpha_of_three_coders(level, expected):
    assert alpha(THREE_CODERS, level) == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 10_000), st.integers(2, 5), st.sampled_from(LEVELS))
def test_alpha_equals_the_oracle(seed, num_values, level):
    oracle = pytest.importorskip("krippendorff", reason="a GPL package: an oracle of tests alone")
    draw = np.random.default_rng(seed)
    truth = draw.integers(1, num_values + 1, size=12)
    data = np.where(draw.random((4, 12)) < 0.6, truth, draw.integers(1, num_values + 1, (4, 12)))
    ratings = np.where(draw.random((4, 12)) < 0.2, np.nan, data.astype(float))
    coders = [[None if math.isnan(value) else value for value in row] for row in ratings]
    ours = alpha(coders, level)
    try:
        theirs = oracle.alpha(ratings, level_of_measurement=level)
    except ValueError:
        assert isinstance(ours, Undefined)
    else:
        assert ours == pytest.approx(theirs, abs=1e-9)


def test_fleiss_kappa_of_wikipedias_table():
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(patterns_of(np.array(table))) == pytest.approx(0.2099307, abs=1e-6)


@pytest.mark.parametrize(("weights", "expected"), [("none", 0.4842), ("linear", 0.4701)])
def test_cohen_kappa_of_a_known_table(weights, expected):
    table = np.array([[0, 4, 1], [0, 8, 0], [0, 1, 5]])
    assert cohen_kappa(table, weights) == pytest.approx(expected, abs=5e-5)


def test_cohen_kappa_by_hand():
    # 20 agree on yes, 15 on no, 5 and 10 differ: P = 0.7, P_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    assert cohen_kappa(np.array([[20, 5], [10, 15]])) == pytest.approx(0.4)


def test_percent_agreement_by_hand():
    # Unit 1: 3 of 3 pairs agree; unit 2: 1 of 3; unit 3 has one labeler and says nothing.
    counts = np.array([[3, 0], [1, 2], [1, 0]])
    assert percent_agreement(patterns_of(counts)) == pytest.approx((1 + 1 / 3) / 2)


def test_kendall_w_by_hand():
    assert kendall_w(np.array([[1.0, 2, 3], [1, 2, 3]])) == pytest.approx(1)
    assert kendall_w(np.array([[1.0, 2, 3], [3, 2, 1]])) == pytest.approx(0)
    # R = 4, 5, 9: sum of R^2 = 122; (12 * 122 - 3 * 9 * 3 * 16) / (9 * 3 * 8) = 168 / 216.
    assert kendall_w(np.array([[1.0, 2, 3], [1, 2, 3], [2, 1, 3]])) == pytest.approx(168 / 216)


def test_kendall_w_of_equal_rankings_with_ties_is_one():
    assert kendall_w(np.array([[1.0, 1, 3, 4]] * 3)) == pytest.approx(1)
    # Positions need not be 1, 2, ...: their order counts.
    assert kendall_w(np.array([[1.0, 1, 2, 3], [10, 10, 30, 40]])) == pytest.approx(1)


@pytest.mark.parametrize("measure", [percent_agreement, fleiss_kappa, *LEVELS])
def test_without_overlap_nothing_is_defined(measure):
    def value(units):
        level = measure if isinstance(measure, str) else None
        return krippendorff_alpha(units, [0, 1], level) if level else measure(units)

    assert value(patterns_of(np.array([[1, 0], [0, 1]]))) == Undefined(NO_OVERLAP)
    if measure is not percent_agreement:
        assert value(patterns_of(np.array([[3, 0], [2, 0]]))) == Undefined(ALL_ALIKE)


def test_other_undefined_cases():
    assert cohen_kappa(np.zeros((2, 2), int)) == Undefined(NO_OVERLAP)
    assert cohen_kappa(np.array([[5, 0], [0, 0]])) == Undefined(ALL_ALIKE)
    assert kendall_w(np.array([[1.0, 2]])) == Undefined(NO_OVERLAP)
    assert isinstance(kendall_w(np.array([[1.0, 1], [1, 1]])), Undefined)
    assert str(Undefined(ALL_ALIKE)).startswith("undefined, because all judged alike")
    undefined = with_interval(fleiss_kappa, patterns_of(np.array([[2, 0]])))
    assert undefined == Undefined(ALL_ALIKE)


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=2, max_size=12))
def test_measures_do_not_depend_on_the_order_or_names_of_values(rows):
    counts = np.array(rows)
    turned = patterns_of(counts[::-1, ::-1])
    units = patterns_of(counts)
    for measure in (percent_agreement, fleiss_kappa):
        assert measure(units) == pytest.approx(measure(turned)) or measure(units) == measure(turned)
    first, second = (krippendorff_alpha(u, [1, 2, 3], "nominal") for u in (units, turned))
    assert first == second or first == pytest.approx(second)


def test_the_interval_is_that_of_drawing_units():
    draw = np.random.default_rng(0)
    first = draw.integers(0, 2, 400)
    second = np.where(draw.random(400) < 0.8, first, 1 - first)
    counts = np.stack([(first == v).astype(int) + (second == v) for v in (0, 1)], axis=1)
    estimate = with_interval(percent_agreement, patterns_of(counts), num_resamples=2000)
    assert isinstance(estimate, Estimate)
    error = math.sqrt(estimate.value * (1 - estimate.value) / 400)
    assert estimate.low == pytest.approx(estimate.value - 1.96 * error, abs=0.004)
    assert estimate.high == pytest.approx(estimate.value + 1.96 * error, abs=0.004)


def test_a_million_judgments_take_no_longer_than_their_patterns():
    draw = np.random.default_rng(0)
    counts = draw.multinomial(5, [0.6, 0.3, 0.1], size=200_000)
    units = patterns_of(counts)
    assert len(units.number) == 21
    assert units.number.sum() == 200_000
