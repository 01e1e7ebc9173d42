import math

import torch

from lit_rlhf.objectives import CPO
from tests.objectives.agreement import assert_agrees
from tests.objectives.preference.cases import losses_of, sigmoid


def test_one_pair_by_hand():
    lengths = torch.tensor([[2], [4]])
    expected = -math.log(sigmoid(0.2)) + 0.5 * 3 / 2
    assert_agrees(losses_of(CPO(0.1, 0.5), lengths=lengths), [expected])
    assert not CPO().requires_reference
