import math

import torch

from lit_rlhf.objectives import DiscoPOP
from tests.objectives.agreement import assert_agrees
from tests.objectives.preference.cases import losses_of, make_pairs, sigmoid


def test_one_pair_by_hand():
    gate = sigmoid(0.3 / 0.2)
    expected = (1 - gate) * math.log(1 + math.exp(-0.3)) + gate * math.exp(-0.3)
    assert_agrees(losses_of(DiscoPOP(0.1, 0.2)), [expected])


def test_far_on_the_wrong_side_it_is_logistic():
    loss = DiscoPOP(beta=1.0)
    logprobs = torch.tensor([[-2000.0], [0.0], [0.0], [0.0]])
    assert loss(make_pairs(logprobs, loss)).losses.tolist() == [2000.0]


def test_at_the_papers_temperature_equal_policies_are_pulled_the_wrong_way():
    loss, margin = DiscoPOP(beta=1.0), torch.tensor([0.0, -0.2, 0.5], dtype=torch.float64)
    logprobs = torch.stack([margin, *torch.zeros(3, 3, dtype=torch.float64)])
    at_zero, below, above = loss(make_pairs(logprobs, loss)).losses.tolist()
    assert below < at_zero > above
