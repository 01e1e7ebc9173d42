import torch

from lit_rlhf.objectives import Hinge
from tests.objectives.agreement import assert_agrees
from tests.objectives.preference.cases import make_pairs

# x = 1, y = -2
PAIR = torch.tensor([[-3.0], [-5.0], [-4.0], [-3.0]], dtype=torch.float64)


def losses_of(loss, **settings):
    settings = {"probability": torch.ones(1), **settings}
    return loss(make_pairs(PAIR, loss, **settings)).losses


def test_one_pair_by_hand_and_no_pull_beyond_the_margin():
    assert_agrees(losses_of(Hinge(0.1)), [0.7])
    assert losses_of(Hinge(0.5)).item() == 0.0
