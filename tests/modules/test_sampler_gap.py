import pytest
import torch

from lit_rlhf.batches import RolloutBatch
from lit_rlhf.modules.metrics import Reduction
from lit_rlhf.modules.sampler_gap import sampler_gap
from tests.oracles.importance import weight
from tests.oracles.kl import k3
from tests.rewards.samples import sample_batch


def rollout_of(old, sampler):
    """Return two responses of 4 and 2 tokens with these log-probabilities."""
    samples = sample_batch(["so ", "why "], ["abcd", "ef"])._replace(sampler_logprobs=sampler)
    return RolloutBatch(samples, old, torch.zeros_like(old), None, torch.zeros(2))


def on_other_ranks(*, tokens=0.0, gaps=(), largest=0.0):
    """Return the reduction over this process and another one with these sums."""
    other = torch.tensor([tokens, *gaps], dtype=torch.float64)
    return Reduction(lambda sums: sums + other if gaps else sums, lambda own: max(own, largest))


ALONE = on_other_ranks()


@pytest.mark.parametrize("cap", [1.3, None])
def test_means_equal_the_oracles_token_by_token(cap):
    old, sampler = -torch.rand(2, 4), -torch.rand(2, 4)
    gap = sampler_gap(rollout_of(old, sampler), cap, ALONE)
    names = ["sampler_difference", "sampler_kl", "sampler_weight", "sampler_truncated"]
    expected, largest = [0.0] * 4, 0.0
    for row, column in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]:
        new, drawn = float(old[row, column]), float(sampler[row, column])
        one = (0.0, False) if cap is None else weight(new, drawn, cap)
        counted = (abs(new - drawn), k3(drawn, new), *one)
        expected = [total + float(part) / 6 for total, part in zip(expected, counted, strict=True)]
        largest = max(largest, abs(new - drawn))
    # Without a cap no weight is made or logged.
    kept = names if cap is not None else names[:2]
    assert gap.keys() == {*kept, "sampler_difference_max"}
    assert [gap[name] for name in kept] == pytest.approx(expected[: len(kept)], abs=1e-6)
    assert gap["sampler_difference_max"] == pytest.approx(largest, abs=1e-6)


def test_means_are_over_the_tokens_of_all_processes():
    rollout = rollout_of(-torch.rand(2, 4), -torch.rand(2, 4))
    alone = sampler_gap(rollout, 2.0, ALONE)
    both = sampler_gap(
        rollout, 2.0, on_other_ranks(tokens=4.0, gaps=(8.0, 12.0, 16.0, 2.0), largest=5.0)
    )
    assert both["sampler_difference_max"] == 5.0
    others = {"difference": 8, "kl": 12, "weight": 16, "truncated": 2}
    for name, other in others.items():
        own = 6 * alone[f"sampler_{name}"]
        assert both[f"sampler_{name}"] == pytest.approx((own + other) / 10)


def test_padding_counts_for_nothing():
    old, sampler = torch.zeros(2, 4), torch.zeros(2, 4)
    old[1, 2:] = -30.0
    assert sampler_gap(rollout_of(old, sampler), 2.0, ALONE) == {
        "sampler_difference": 0,
        "sampler_kl": 0,
        "sampler_weight": 1,
        "sampler_truncated": 0,
        "sampler_difference_max": 0,
    }
