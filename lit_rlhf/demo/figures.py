"""The demonstration's figures: what is asked of each, and whether it was reached."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from lit_rlhf.demo.report_schema import Figure
from lit_rlhf.evaluation.comparisons import OrderAccuracy
from lit_rlhf.evaluation.statistics import Estimate

PERPLEXITY_FALL_NAME = "SFT: fall of the perplexity"
PERPLEXITY_FALL = 25.0  # %
ORDER_ACCURACY_QUICK = (76.0, 86.0)  # %: all pairs, pairs more than 1 apart
ORDER_ACCURACY_FULL = (83.0, 93.0)
VALIDATION_GAIN = 0.8  # standard deviations of the SFT policy's scores
VADER_GAIN = 0.15
KL_TOLERANCE = 30.0  # % of the target
DISTINCT_RATIO = 80.0  # %
DPO_WIN_RATE = 65.0  # %
LOG_RATIO = 1e-3


@dataclass(frozen=True)
class Measurements:
    """What the run measured, all of it on texts and prompts that nothing was trained on.

    Attributes:
        perplexity_before: of the base model.
        perplexity_after: of the SFT policy.
        accuracy: reward model against the mean of the people, all pairs.
        accuracy_wide: the same, pairs whose mean ratings are more than 1 apart.
        calibration_error: of the reward model, in [0, 1].
        brier_score: of the reward model, in [0, 1].
        validation_gain: PPO minus SFT by the validation reward, in standard deviations of the
            SFT policy's scores.
        vader_gain: PPO minus SFT, the same samples.
        kl: at the end of PPO, nats per response.
        kl_target: of the controller.
        kl_coefficients: that each iteration's rewards were penalised with, in order.
        distinct_2_sft: share of distinct bigrams in the SFT policy's samples.
        distinct_2_ppo: in the PPO policy's.
        dpo_win_rate: DPO against SFT by the validation reward.
        largest_log_ratio: largest absolute log ratio in the first minibatch of any iteration.
    """

    perplexity_before: float
    perplexity_after: float
    accuracy: OrderAccuracy
    accuracy_wide: OrderAccuracy
    calibration_error: float
    brier_score: float
    validation_gain: Estimate
    vader_gain: Estimate
    kl: float
    kl_target: float
    kl_coefficients: Sequence[float]
    distinct_2_sft: float
    distinct_2_ppo: float
    dpo_win_rate: Estimate
    largest_log_ratio: float


def figures(measured: Measurements, *, full: bool = False) -> tuple[Figure, ...]:
    """Return the report's figures, each with its target.

    Args:
        measured: what the run measured.
        full: judge the reward model by the targets of the full run, not of the quick one.
    """
    return (
        *_sft(measured),
        *_reward_model(measured, ORDER_ACCURACY_FULL if full else ORDER_ACCURACY_QUICK),
        *_ppo(measured),
        _estimate(
            "DPO: win rate against SFT by the validation reward",
            _percent(measured.dpo_win_rate),
            unit="%",
            target=f"at least {DPO_WIN_RATE:g} %",
            met=measured.dpo_win_rate.value * 100 >= DPO_WIN_RATE,
        ),
    )


def _sft(measured: Measurements) -> tuple[Figure, ...]:
    fall = 100 * (1 - measured.perplexity_after / measured.perplexity_before)
    return (
        Figure("SFT: held-out perplexity before", measured.perplexity_before),
        Figure("SFT: held-out perplexity after", measured.perplexity_after),
        _at_least(PERPLEXITY_FALL_NAME, fall, PERPLEXITY_FALL, unit="%"),
    )


def _reward_model(measured: Measurements, targets: tuple[float, float]) -> tuple[Figure, ...]:
    accuracies = (
        ("Reward model: held-out pairs in people's order", measured.accuracy),
        ("Reward model: the same, pairs more than 1 apart", measured.accuracy_wide),
    )
    return (
        *(
            _at_least(name, 100 * result.accuracy, target, unit="%", n=result.num_pairs)
            for (name, result), target in zip(accuracies, targets, strict=True)
        ),
        Figure("Reward model: calibration error", measured.calibration_error),
        Figure("Reward model: Brier score", measured.brier_score),
    )


def _ppo(measured: Measurements) -> tuple[Figure, ...]:
    steps = [after - before for before, after in itertools.pairwise(measured.kl_coefficients)]
    rises, falls = sum(step > 0 for step in steps), sum(step < 0 for step in steps)
    is_near = abs(measured.kl - measured.kl_target) <= measured.kl_target * KL_TOLERANCE / 100
    distinct_ratio = (
        100 * measured.distinct_2_ppo / measured.distinct_2_sft
        if measured.distinct_2_sft
        else float("nan")
    )
    return (
        _estimate(
            "PPO: gain in validation reward over SFT",
            measured.validation_gain,
            unit="standard deviations",
            target=f"at least {VALIDATION_GAIN:g}",
            met=measured.validation_gain.value >= VALIDATION_GAIN,
        ),
        _estimate(
            "PPO: gain in VADER score over SFT",
            measured.vader_gain,
            unit="",
            target=f"at least {VADER_GAIN:g}, interval above 0",
            met=measured.vader_gain.value >= VADER_GAIN and measured.vader_gain.low > 0,
        ),
        Figure(
            "PPO: KL to SFT at the end",
            measured.kl,
            unit="nats per response",
            target=f"within {KL_TOLERANCE:g} % of {measured.kl_target:g}",
            met=is_near,
        ),
        _at_least("PPO: iterations that raised the KL coefficient", rises, 1),
        _at_least("PPO: iterations that lowered the KL coefficient", falls, 1),
        Figure("PPO: KL coefficient at the end", measured.kl_coefficients[-1]),
        _at_least("PPO: distinct-2 against SFT's", distinct_ratio, DISTINCT_RATIO, unit="%"),
        Figure(
            "PPO: largest absolute log ratio of a first minibatch",
            measured.largest_log_ratio,
            target=f"under {LOG_RATIO:g}",
            met=measured.largest_log_ratio < LOG_RATIO,
        ),
    )


def _at_least(
    name: str, value: float, target: float, *, unit: str = "", n: int | None = None
) -> Figure:
    return Figure(
        name, value, unit, f"at least {target:g} {unit}".strip(), met=bool(value >= target), n=n
    )


def _estimate(name: str, estimate: Estimate, *, unit: str, target: str, met: bool) -> Figure:
    interval = (estimate.low, estimate.high)
    return Figure(name, estimate.value, unit, target, met, interval, estimate.n)


def _percent(estimate: Estimate) -> Estimate:
    value, low, high, n = estimate
    return Estimate(100 * value, 100 * low, 100 * high, n)
