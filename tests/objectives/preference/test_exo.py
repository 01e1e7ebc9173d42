import math

import torch

from lit_rlhf.objectives import EXO
from tests.objectives.agreement import assert_agrees
from tests.objectives.preference.cases import losses_of


def test_the_kl_is_zero_where_the_policy_says_what_people_say():
    """Margin 3 beta = log(0.9 / 0.1), labels 0.9."""
    beta = math.log(9) / 3
    believed = 0.9 * (1 - 0.01) + 0.1 * 0.01
    loss = EXO(math.log(believed / (1 - believed)) / 3, 0.01)
    label = torch.tensor([0.9], dtype=torch.float64)
    assert_agrees(losses_of(loss, probability=label), [0.0])
    assert losses_of(EXO(beta, 0.01)).item() > 0
