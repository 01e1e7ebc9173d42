import math

import torch

from lit_rlhf.objectives import ORPO
from tests.objectives.agreement import assert_agrees
from tests.objectives.preference.cases import losses_of, make_pairs


def test_one_pair_by_hand():
    lengths = torch.tensor([[3], [5]])  # both have e^-1 a token: the same odds
    assert_agrees(losses_of(ORPO(0.1), lengths=lengths), [1 + 0.1 * math.log(2)])
    assert not ORPO().requires_reference


def test_a_certain_response_has_finite_odds_and_no_pull():
    loss, logprobs = ORPO(), torch.zeros(4, 1, requires_grad=True)
    losses = loss(make_pairs(logprobs, loss, probability=torch.ones(1))).losses
    losses.sum().backward()
    assert_agrees(losses, [0.1 * math.log(2)])
    assert torch.isfinite(logprobs.grad).all()
