import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import AdaptiveKL, FixedKL, KLController, KLState
from tests.oracles import kl_control as oracle

measured_kl = st.floats(-100.0, 1000.0)


def test_the_coefficient_follows_the_paper():
    measurements = [(9.0, 64), (6.5, 64), (6.0, 64), (2.0, 128), (-1.0, 64), (5.9, 512)]
    expected = oracle.trajectory(0.15, 6.0, 10000.0, 0.2, measurements)
    controller = AdaptiveKL()
    state = controller.initial_state()
    assert state == KLState(0.15, 0)
    for count, ((kl, num_episodes), coefficient) in enumerate(
        zip(measurements, expected, strict=True), start=1
    ):
        state = controller.update(state, kl, num_episodes)
        assert state.coefficient == pytest.approx(coefficient, rel=1e-10)
        assert state.num_updates == count


def test_one_update_by_hand():
    # error clip(12/6 - 1) = 0.2, factor 1 + 0.2 * 500/10000 = 1.01
    assert AdaptiveKL().update(KLState(0.1, 3), 12.0, 500) == KLState(pytest.approx(0.101), 4)


@given(measured_kl, st.integers(0, 10**6))
def test_a_fixed_coefficient_stays(kl, num_episodes):
    state = FixedKL(0.3).update(KLState(0.3, 5), kl, num_episodes)
    assert state == KLState(0.3, 6)


@given(measured_kl, measured_kl, st.integers(0, 10**6))
def test_more_kl_never_means_a_smaller_coefficient(kl, other_kl, num_episodes):
    low, high = sorted((kl, other_kl))
    state = KLState(0.2, 0)
    update = AdaptiveKL().update
    assert (
        update(state, low, num_episodes).coefficient
        <= update(state, high, num_episodes).coefficient
    )


@given(measured_kl, st.integers(0, 10000))
def test_one_update_moves_the_coefficient_by_a_bounded_share(kl, num_episodes):
    factor = AdaptiveKL().update(KLState(1.0, 0), kl, num_episodes).coefficient
    assert abs(factor - 1) <= 0.2 * num_episodes / 10000 + 1e-12


def test_the_coefficient_stays_where_the_kl_is_on_target():
    assert AdaptiveKL(target=4.0).update(KLState(0.7, 0), 4.0, 64).coefficient == 0.7


def test_the_coefficient_never_reaches_zero():
    controller = AdaptiveKL()
    assert controller.update(KLState(0.15, 0), 0.0, 10**9).coefficient == pytest.approx(0.12)
    state = controller.initial_state()
    for _ in range(5000):
        state = controller.update(state, 0.0, 10**4)
    assert state.coefficient > 0
    assert controller.update(state, 100.0, 10**4).coefficient > state.coefficient


def test_infinite_kl_counts_as_the_largest_error():
    updated = AdaptiveKL().update(KLState(0.1, 0), math.inf, 10000)
    assert updated.coefficient == pytest.approx(0.12)


@pytest.mark.parametrize("controller", [FixedKL(), AdaptiveKL()])
def test_measurements_that_make_no_sense_are_refused(controller):
    with pytest.raises(ValueError, match="KL is NaN"):
        controller.update(controller.initial_state(), math.nan, 8)
    with pytest.raises(ValueError, match="num_episodes is -1"):
        controller.update(controller.initial_state(), 1.0, -1)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("initial", "coefficient"),
        ("target", "target"),
        ("horizon", "horizon"),
        ("max_error", "controller.max_error"),
    ],
)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_settings_out_of_range_are_refused_by_name(name, key, value):
    with pytest.raises(ConfigError, match=rf"kl\.{key} is {value}"):
        AdaptiveKL(**{name: value})


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_fixed_coefficient_must_not_be_negative(value):
    with pytest.raises(ConfigError, match=r"kl\.coefficient"):
        FixedKL(value)


def test_a_controller_must_say_how_it_starts_and_updates():
    with pytest.raises(TypeError, match="abstract"):
        KLController()
