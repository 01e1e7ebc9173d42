import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.objectives import AOT
from tests.objectives.agreement import assert_agrees, floats
from tests.objectives.preference.cases import make_pairs


def test_margins_meet_the_references_margins_of_the_same_rank():
    # u = 3, 1 and v = 0, 2: the larger u meets the larger v
    logprobs = torch.tensor([[3.0, 1.0], [0.0, 0.0], [0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    loss = AOT(beta=1.0)
    expected = [math.log(1 + math.exp(-(3 - 2))), math.log(1 + math.exp(-(1 - 0)))]
    assert_agrees(loss(make_pairs(logprobs, loss)).losses, expected)


@given(floats((4, 5), -20, 0), st.permutations(range(5)))
def test_a_loss_goes_with_its_pair(logprobs, order):
    loss = AOT()
    losses = loss(make_pairs(logprobs, loss)).losses
    permuted = loss(make_pairs(logprobs[:, order], loss)).losses
    assert_agrees(permuted.sum(), losses.sum())
    assert_agrees(permuted.sort().values, losses.sort().values)
