import math

import pytest
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


@pytest.mark.parametrize("paired", [True, False])
@given(floats((4, 5), -20, 0), st.permutations(range(5)))
def test_pairs_without_weight_change_no_other_loss(paired, logprobs, order):
    loss = AOT(paired=paired)
    pairs = make_pairs(logprobs[:, order], loss)
    silent = torch.tensor(order) >= 3
    some = pairs._replace(weight=torch.where(silent, 0.0, pairs.weight))
    losses = loss(some).losses
    alone = loss(make_pairs(logprobs[:, [place for place in order if place < 3]], loss)).losses
    assert_agrees(losses[~silent], alone)
    assert losses.isfinite().all()
