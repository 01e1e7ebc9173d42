import math

import torch

from lit_rlhf.objectives import GSPO
from lit_rlhf.objectives.policy import PolicyTokens
from tests.objectives.agreement import assert_agrees

# Log-ratios 0.3 and -0.1 of a response of two tokens, a third one masked.
LOGPROBS = torch.tensor([[-1.0, -2.0, 5.0]], dtype=torch.float64)
OLD = torch.tensor([[-1.3, -1.9, 0.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False]])


def tokens(advantage):
    return PolicyTokens(LOGPROBS, OLD, torch.full_like(LOGPROBS, advantage), MASK)


def test_the_ratio_is_that_of_the_response():
    by_mean, by_sum = GSPO(0.5, 0.5), GSPO(0.5, 0.5, per_token=False)
    assert_agrees(by_mean(tokens(2.0)).losses[0, :2], [-2 * math.exp(0.1)] * 2)
    assert_agrees(by_sum(tokens(2.0)).losses[0, :2], [-2 * math.exp(0.2)] * 2)


def test_a_response_is_clipped_as_a_whole():
    loss = GSPO(0.05, 0.08)
    good, bad = loss(tokens(2.0)), loss(tokens(-2.0))
    assert_agrees(good.losses[0, :2], [-2 * 1.08] * 2)
    assert good.is_clipped[0, :2].all()
    assert_agrees(bad.losses[0, :2], [2 * math.exp(0.1)] * 2)
    assert not bad.is_clipped[0, :2].any()
