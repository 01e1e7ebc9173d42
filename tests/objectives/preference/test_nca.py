import math

import torch

from lit_rlhf.objectives import NCA
from tests.objectives.agreement import assert_agrees
from tests.objectives.preference.cases import make_pairs

# x = 1, y = -2
PAIR = torch.tensor([[-3.0], [-5.0], [-4.0], [-3.0]], dtype=torch.float64)


def losses_of(loss, **settings):
    settings = {"probability": torch.ones(1), **settings}
    return loss(make_pairs(PAIR, loss, **settings)).losses


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_one_pair_by_hand():
    expected = -math.log(sigmoid(0.1)) - (math.log(sigmoid(-0.1)) + math.log(sigmoid(0.2))) / 2
    assert_agrees(losses_of(NCA(0.1)), [expected])
