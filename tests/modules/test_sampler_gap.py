import pytest
import torch

from lit_rlhf.batches import RolloutBatch
from lit_rlhf.modules.metrics import NamedMeans
from lit_rlhf.modules.ppo_metrics import sampler_gap
from tests.oracles.importance import weight
from tests.oracles.kl import k3
from tests.rewards.samples import sample_batch


def rollout_of(old, sampler):
    """Return two responses of 4 and 2 tokens with these log-probabilities."""
    samples = sample_batch(["so ", "why "], ["abcd", "ef"])._replace(sampler_logprobs=sampler)
    return RolloutBatch(samples, old, torch.zeros_like(old), None, torch.zeros(2))


def means_of(rollout, cap):
    """Return the means over the response tokens, as they are logged."""
    means = NamedMeans()
    means.update(sampler_gap(rollout, cap), rollout.samples.response_mask)
    return means.compute()


@pytest.mark.parametrize("cap", [1.3, None])
def test_means_equal_the_oracles_token_by_token(cap):
    old, sampler = -torch.rand(2, 4), -torch.rand(2, 4)
    gap = means_of(rollout_of(old, sampler), cap)
    names = ["sampler_difference", "sampler_kl", "sampler_weight", "sampler_truncated"]
    expected = [0.0] * 4
    for row, column in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]:
        new, drawn = float(old[row, column]), float(sampler[row, column])
        one = (0.0, False) if cap is None else weight(new, drawn, cap)
        counted = (abs(new - drawn), k3(drawn, new), *one)
        expected = [total + float(part) / 6 for total, part in zip(expected, counted, strict=True)]
    # Without a cap no weight is made or logged.
    kept = names if cap is not None else names[:2]
    assert gap.keys() == set(kept)
    assert [gap[name] for name in kept] == pytest.approx(expected[: len(kept)], abs=1e-6)


def test_padding_counts_for_nothing():
    old, sampler = torch.zeros(2, 4), torch.zeros(2, 4)
    old[1, 2:] = -30.0
    assert means_of(rollout_of(old, sampler), 2.0) == {
        "sampler_difference": 0,
        "sampler_kl": 0,
        "sampler_weight": 1,
        "sampler_truncated": 0,
    }
