import math

import pytest
import torch
from hypothesis import given

from lit_rlhf.objectives import response_nll
from tests.objectives.agreement import (
    SHAPE_ERRORS,
    assert_agrees,
    both_precisions,
    floats,
    masks,
    normal,
    random_mask,
)
from tests.oracles import language_modeling as oracle


@both_precisions
def test_the_likelihood_of_responses_agrees_with_the_sum(dtype):
    logprobs, mask = -normal(4, 6, dtype=dtype).abs(), random_mask(4, 6)
    golden = oracle.response_nll(logprobs.numpy(), mask.numpy())
    assert_agrees(response_nll(logprobs, mask), golden, dtype)


def test_every_counted_token_pulls_with_the_same_weight():
    logprobs, mask = normal(3, 4).requires_grad_(), random_mask(3, 4)
    response_nll(logprobs, mask).sum().backward()
    assert torch.equal(logprobs.grad, -mask.double())


@given(floats((3, 4)), masks((3, 4)))
def test_padding_changes_nothing_and_rows_stay_apart(logprobs, mask):
    whole = response_nll(logprobs, mask)
    padded = torch.nn.functional.pad(logprobs, (0, 2), value=-math.inf)
    padded_mask = torch.nn.functional.pad(mask, (0, 2), value=False)
    assert_agrees(response_nll(padded, padded_mask), whole)
    assert torch.equal(response_nll(logprobs.flip(0), mask.flip(0)), whole.flip(0))


def test_a_row_in_which_nothing_counts_costs_nothing():
    assert response_nll(torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool)).tolist() == [0.0]


def test_bfloat16_is_summed_in_float32():
    nll = response_nll(-torch.ones(1, 1000).bfloat16(), torch.ones(1, 1000, dtype=torch.bool))
    assert_agrees(nll, [1000.0], torch.float32)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(SHAPE_ERRORS):
        response_nll(torch.zeros(2, 3), torch.ones(2, 1, dtype=torch.bool))
