import math

import numpy as np
import pytest
import torch
from hypothesis import given

from lit_rlhf.objectives import kl_k1, kl_k2, kl_k3, kl_per_response
from tests.objectives.agreement import (
    SHAPE_ERRORS,
    assert_agrees,
    both_precisions,
    floats,
    masks,
    normal,
    random_mask,
)
from tests.oracles import kl as oracle
from tests.oracles.logprobs import distribution
from tests.oracles.masking import row_sums

ESTIMATORS = {"k1": (kl_k1, oracle.k1), "k2": (kl_k2, oracle.k2), "k3": (kl_k3, oracle.k3)}
each_estimator = pytest.mark.parametrize(
    ("estimate", "expected"), ESTIMATORS.values(), ids=ESTIMATORS.keys()
)


@both_precisions
@each_estimator
def test_estimates_agree_with_the_definition(estimate, expected, dtype):
    logprobs, reference = -normal(3, 5, dtype=dtype).abs(), -normal(3, 5, dtype=dtype).abs()
    golden = np.vectorize(expected)(logprobs.double().numpy(), reference.double().numpy())
    assert_agrees(estimate(logprobs, reference), golden, dtype)


@each_estimator
def test_estimates_have_the_gradients_of_their_formulas(estimate, expected):
    inputs = normal(2, 3).requires_grad_(), normal(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(estimate, inputs)


def test_expectations_of_k1_and_k3_under_the_policy_are_the_exact_kl():
    policy = torch.tensor(distribution([0.3, -1.0, 2.0, 0.1]), dtype=torch.float64)
    reference = torch.tensor(distribution([1.0, 0.5, -0.2, 0.0]), dtype=torch.float64)
    exact = oracle.exact(policy.tolist(), reference.tolist())
    for estimate in (kl_k1, kl_k3):
        assert_agrees((policy * estimate(policy.log(), reference.log())).sum(), exact)


@given(floats((4, 3)))
def test_equal_policies_have_zero_kl(logprobs):
    for estimate in (kl_k1, kl_k2, kl_k3):
        assert torch.equal(estimate(logprobs, logprobs), torch.zeros_like(logprobs))


@given(floats((20,), -1.0, 1.0), floats((20,), -1.0, 1.0))
def test_k2_and_k3_are_never_negative(logprobs, reference):
    for scale in (1.0, 1e-3, 1e-7):
        for dtype in (torch.float32, torch.float64):
            pair = (scale * logprobs).to(dtype), (scale * reference).to(dtype)
            assert (kl_k2(*pair) >= 0).all()
            assert (kl_k3(*pair) >= 0).all()


@given(floats((6,)), floats((6,)))
def test_k1_changes_its_sign_and_k2_does_not_when_policies_swap(logprobs, reference):
    assert torch.equal(kl_k1(logprobs, reference), -kl_k1(reference, logprobs))
    assert torch.equal(kl_k2(logprobs, reference), kl_k2(reference, logprobs))


def test_a_token_that_the_policy_all_but_forbids_leaves_k3_finite():
    logprobs = torch.tensor([-500.0], requires_grad=True)
    estimate = kl_k3(logprobs, torch.tensor([-1.0]))
    estimate.sum().backward()
    assert_agrees(estimate, [math.expm1(20.0) - 20.0])
    assert logprobs.grad.tolist() == [0.0]


@each_estimator
def test_bfloat16_is_compared_in_float32(estimate, expected):
    logprobs, reference = torch.tensor([-1.5]).bfloat16(), torch.tensor([-1.25]).bfloat16()
    assert_agrees(estimate(logprobs, reference), [expected(-1.5, -1.25)], torch.float32)


@both_precisions
def test_kl_of_a_response_sums_its_tokens(dtype):
    token_kl, mask = normal(4, 6, dtype=dtype), random_mask(4, 6)
    golden = row_sums(token_kl.numpy(), mask.numpy())
    assert_agrees(kl_per_response(token_kl, mask), golden, dtype)


@given(floats((4, 3)), masks((4, 3)))
def test_kl_of_a_response_ignores_padding_and_follows_the_rows(token_kl, mask):
    padded = torch.nn.functional.pad(token_kl, (0, 2), value=math.nan)
    padded_mask = torch.nn.functional.pad(mask, (0, 2), value=False)
    whole = kl_per_response(token_kl, mask)
    assert_agrees(kl_per_response(padded, padded_mask), whole)
    assert torch.equal(kl_per_response(token_kl.flip(0), mask.flip(0)), whole.flip(0))


def test_a_response_without_tokens_has_zero_kl():
    assert kl_per_response(torch.ones(2, 0), torch.ones(2, 0, dtype=torch.bool)).tolist() == [0, 0]
    assert kl_per_response(torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool)).tolist() == [0]


@pytest.mark.parametrize("function", [kl_k1, kl_k2, kl_k3])
def test_shapes_that_would_broadcast_are_refused(function):
    with pytest.raises(SHAPE_ERRORS):
        function(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(SHAPE_ERRORS):
        kl_per_response(torch.zeros(2, 3), torch.ones(2, 1, dtype=torch.bool))
