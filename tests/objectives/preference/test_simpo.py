import math

import torch

from lit_rlhf.objectives import SimPO
from tests.objectives.agreement import assert_agrees
from tests.objectives.preference.cases import losses_of, sigmoid


def test_one_pair_by_hand():
    lengths = torch.tensor([[2], [4]])
    logit = 2.0 * (-3 / 2 + 5 / 4) - 0.5
    assert_agrees(losses_of(SimPO(), lengths=lengths), [-math.log(sigmoid(logit))])
    turned = -math.log(sigmoid(0.5 - 0.5))
    label = torch.tensor([0.75], dtype=torch.float64)
    assert_agrees(
        losses_of(SimPO(), lengths=lengths, probability=label),
        [-0.75 * math.log(sigmoid(logit)) + 0.25 * turned],
    )


def test_it_holds_no_reference():
    assert not SimPO().requires_reference
