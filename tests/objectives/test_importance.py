import math

import numpy as np
import pytest
import torch
from hypothesis import given

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import truncated_importance_weights
from tests.objectives.agreement import SHAPE_ERRORS, assert_agrees, both_precisions, floats, normal
from tests.oracles import importance as oracle


@both_precisions
@pytest.mark.parametrize("cap", [1.0, 1.5, 3.0])
def test_weights_and_marks_agree_with_the_paper(cap, dtype):
    old, sampler = normal(5, 8, dtype=dtype), normal(5, 8, dtype=dtype)
    output = truncated_importance_weights(old, sampler, cap=cap)
    weights, is_truncated = np.vectorize(oracle.weight)(old.double(), sampler.double(), cap)
    assert_agrees(output.weights, weights, dtype)
    assert output.is_truncated.tolist() == is_truncated.tolist()
    assert 0 < is_truncated.mean() < 1


def test_in_expectation_the_samplers_tokens_become_the_trainers():
    trainer, sampler = normal(6).softmax(-1), normal(6).softmax(-1)
    values = normal(6)
    for cap in (1e6, 1.2):
        weights = truncated_importance_weights(trainer.log(), sampler.log(), cap=cap).weights
        corrected = (sampler * weights * values).sum()
        golden = oracle.corrected_mean(trainer.tolist(), sampler.tolist(), values.tolist(), cap)
        assert corrected.item() == pytest.approx(golden, abs=1e-10)
        is_exact = corrected.item() == pytest.approx((trainer * values).sum().item(), abs=1e-10)
        assert is_exact == (cap > 2)  # truncation trades variance for a bias


def test_weights_are_constants():
    old, sampler = normal(3).requires_grad_(), normal(3).requires_grad_()
    assert not truncated_importance_weights(old, sampler).weights.requires_grad


@given(floats((3, 4)))
def test_an_engine_that_agrees_changes_nothing(logprobs):
    output = truncated_importance_weights(logprobs, logprobs, cap=1.0)
    assert torch.equal(output.weights, torch.ones(3, 4, dtype=torch.float64))
    assert not output.is_truncated.any()


@given(floats((3, 4)), floats((3, 4)))
def test_weights_lie_between_zero_and_the_cap(old, sampler):
    output = truncated_importance_weights(old, sampler, cap=2.0)
    assert (output.weights > 0).all()
    assert (output.weights <= 2).all()
    assert torch.equal(output.is_truncated, old - sampler > math.log(2))


@pytest.mark.parametrize(
    ("log_ratio", "weight"), [(1000.0, 2.0), (math.inf, 2.0), (-1000.0, math.exp(-20.0))]
)
def test_a_ratio_out_of_all_bounds_stays_finite(log_ratio, weight):
    output = truncated_importance_weights(torch.tensor([log_ratio]), torch.zeros(1))
    assert_agrees(output.weights, [weight], torch.float32)


def test_bfloat16_is_computed_in_float32():
    old, sampler = (torch.tensor([value]).bfloat16() for value in (-1.0, -1.125))
    output = truncated_importance_weights(old, sampler)
    assert_agrees(output.weights, [math.exp(0.125)], torch.float32)


@pytest.mark.parametrize("cap", [0.99, 0.0, -1.0, math.nan])
def test_a_cap_below_one_is_refused(cap):
    with pytest.raises(ConfigError, match="at least 1"):
        truncated_importance_weights(torch.zeros(2), torch.zeros(2), cap=cap)


def test_shapes_that_would_broadcast_are_refused():
    for shapes in (((2, 3), (2, 1)), ((2, 1), (2, 3))):
        with pytest.raises(SHAPE_ERRORS):
            truncated_importance_weights(*(torch.zeros(shape) for shape in shapes))
