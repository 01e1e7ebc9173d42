import math

import pytest
import torch

from lit_rlhf.batches import RolloutBatch
from lit_rlhf.modules.sampler_gap import sampler_gap
from tests.oracles.importance import weight
from tests.oracles.kl import k3
from tests.rewards.samples import sample_batch


def rollout_of(old, sampler):
    """Return two responses of 4 and 2 tokens with these log-probabilities."""
    samples = sample_batch(["so ", "why "], ["abcd", "ef"])._replace(sampler_logprobs=sampler)
    return RolloutBatch(samples, old, torch.zeros_like(old), None, torch.zeros(2))


@pytest.mark.parametrize("cap", [1.3, None])
def test_sums_and_weights_equal_the_oracles_token_by_token(cap):
    old, sampler = -torch.rand(2, 4), -torch.rand(2, 4)
    gap = sampler_gap(rollout_of(old, sampler), cap)
    expected, largest = [0.0] * 5, 0.0
    for row, column in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]:
        new, drawn = float(old[row, column]), float(sampler[row, column])
        one = (0.0, False) if cap is None else weight(new, drawn, cap)
        counted = (1, abs(new - drawn), k3(drawn, new), *one)
        expected = [total + float(part) for total, part in zip(expected, counted, strict=True)]
        largest = max(largest, abs(new - drawn))
        if cap is not None:
            assert float(gap.weights[row, column]) == pytest.approx(one[0], abs=1e-6)
    assert gap.sums.tolist() == pytest.approx(expected, abs=1e-6)
    assert gap.largest == pytest.approx(largest, abs=1e-6)


def test_means_are_over_the_tokens_of_all_processes():
    old, sampler = -torch.rand(2, 4), -torch.rand(2, 4)
    gap = sampler_gap(rollout_of(old, sampler), 2.0)
    other = torch.tensor([4, 8, 12, 16, 2], dtype=torch.float64)
    means = gap.means(gap.sums + other, 5.0)
    assert means["sampler_difference"] == pytest.approx(float(gap.sums[1] + 8) / 10)
    assert means["sampler_kl"] == pytest.approx(float(gap.sums[2] + 12) / 10)
    assert means["sampler_weight"] == pytest.approx(float(gap.sums[3] + 16) / 10)
    assert means["sampler_truncated"] == pytest.approx(float(gap.sums[4] + 2) / 10)
    assert means["sampler_difference_max"] == 5.0


def test_without_a_cap_no_weight_is_made_or_logged():
    gap = sampler_gap(rollout_of(torch.zeros(2, 4), torch.zeros(2, 4)), None)
    assert gap.weights is None
    assert set(gap.means(gap.sums, gap.largest)) == {
        "sampler_difference",
        "sampler_difference_max",
        "sampler_kl",
    }


def test_padding_counts_for_nothing():
    old, sampler = torch.zeros(2, 4), torch.zeros(2, 4)
    old[1, 2:] = -30.0
    gap = sampler_gap(rollout_of(old, sampler), 2.0)
    assert gap.sums.tolist() == [6, 0, 0, 6, 0]
    assert gap.largest == 0
    assert not math.isnan(float(gap.weights.sum()))
