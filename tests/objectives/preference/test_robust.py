import math

import torch

from lit_rlhf.objectives import DPO, RobustDPO
from tests.objectives.agreement import assert_agrees
from tests.objectives.preference.cases import losses_of, sigmoid


def test_the_mean_over_flips_is_dpo_on_the_true_label():
    loss = RobustDPO(0.5, 0.2)
    as_labelled = losses_of(loss)
    flipped = losses_of(loss, probability=torch.zeros(1))
    assert_agrees(0.8 * as_labelled + 0.2 * flipped, losses_of(DPO(0.5)))
    assert as_labelled.item() < -math.log(sigmoid(1.5))
