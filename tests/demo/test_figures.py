import dataclasses

import pytest

from lit_rlhf.demo.figures import Measurements, figures
from lit_rlhf.evaluation.comparisons import OrderAccuracy
from lit_rlhf.evaluation.statistics import Estimate

GOOD = Measurements(
    perplexity_before=80.0,
    perplexity_after=60.0,
    accuracy=OrderAccuracy(0.77, 1000),
    accuracy_wide=OrderAccuracy(0.87, 600),
    calibration_error=0.03,
    brier_score=0.07,
    validation_gain=Estimate(0.8, 0.6, 1.0, 256),
    vader_gain=Estimate(0.15, 0.1, 0.2, 256),
    kl=7.8,
    kl_target=6.0,
    kl_coefficients=[0.05, 0.04, 0.05],
    distinct_2_sft=0.5,
    distinct_2_ppo=0.4,
    dpo_win_rate=Estimate(0.65, 0.59, 0.71, 256),
    largest_log_ratio=1e-6,
)


def failing(measured, **options):
    return [figure.name for figure in figures(measured, **options) if figure.met is False]


def test_all_targets_met_at_their_limits():
    assert failing(GOOD) == []
    assert len({figure.name for figure in figures(GOOD)}) == len(figures(GOOD))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"perplexity_after": 61.0}, "fall of the perplexity"),
        ({"accuracy": OrderAccuracy(0.75, 9)}, "people's order"),
        ({"accuracy_wide": OrderAccuracy(0.85, 9)}, "more than 1 apart"),
        ({"validation_gain": Estimate(0.79, 0.7, 0.9, 9)}, "validation reward over SFT"),
        ({"vader_gain": Estimate(0.14, 0.1, 0.2, 9)}, "VADER"),
        ({"vader_gain": Estimate(0.2, -0.01, 0.4, 9)}, "VADER"),
        ({"kl": 7.9}, "KL to SFT"),
        ({"kl": 4.1}, "KL to SFT"),
        ({"kl": float("nan")}, "KL to SFT"),
        ({"kl_coefficients": [0.05, 0.04, 0.04]}, "raised"),
        ({"kl_coefficients": [0.05, 0.06]}, "lowered"),
        ({"distinct_2_ppo": 0.39}, "distinct-2"),
        ({"distinct_2_sft": 0.0}, "distinct-2"),
        ({"dpo_win_rate": Estimate(0.64, 0.6, 0.7, 9)}, "DPO"),
        ({"largest_log_ratio": 1e-3}, "log ratio"),
        ({"largest_log_ratio": float("nan")}, "log ratio"),
    ],
)
def test_each_target_can_fail_alone(changes, name):
    (failed,) = failing(dataclasses.replace(GOOD, **changes))
    assert name in failed


def test_the_full_run_asks_more_of_the_reward_model():
    assert len(failing(GOOD, full=True)) == 2
    better = dataclasses.replace(
        GOOD, accuracy=OrderAccuracy(0.83, 9), accuracy_wide=OrderAccuracy(0.93, 9)
    )
    assert failing(better, full=True) == []


def test_values_are_in_their_units():
    by_name = {figure.name: figure for figure in figures(GOOD)}
    rate = by_name["DPO: win rate against SFT by the validation reward"]
    assert (rate.value, rate.unit, rate.n) == (65.0, "%", 256)
    assert rate.interval == pytest.approx((59, 71))
    assert by_name["SFT: fall of the perplexity"].value == pytest.approx(25)
    gain = by_name["PPO: gain in validation reward over SFT"]
    assert (gain.value, gain.interval) == (0.8, (0.6, 1.0))
    assert by_name["Reward model: held-out pairs in people's order"].n == 1000
