import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.objectives import bradley_terry_loss, centering_penalty
from tests.objectives.agreement import SHAPE_ERRORS, assert_agrees, both_precisions, floats, normal
from tests.oracles import bradley_terry as oracle

shares = floats((5,), 0.0, 1.0)


@both_precisions
@pytest.mark.parametrize("has_probability", [True, False])
def test_the_loss_agrees_with_the_model(has_probability, dtype):
    chosen, rejected = normal(8, dtype=dtype), normal(8, dtype=dtype)
    probability = torch.linspace(0, 1, 8, dtype=dtype) if has_probability else None
    golden = np.vectorize(oracle.loss)(
        chosen.double(),
        rejected.double(),
        np.ones(8) if probability is None else probability.double(),
    )
    assert_agrees(bradley_terry_loss(chosen, rejected, probability), golden, dtype)


def test_the_gradient_is_predicted_minus_judged_probability():
    chosen, rejected = normal(6).requires_grad_(), normal(6).requires_grad_()
    probability = torch.rand(6, dtype=torch.float64)
    bradley_terry_loss(chosen, rejected, probability).sum().backward()
    expected = torch.sigmoid(chosen - rejected).detach() - probability
    assert_agrees(chosen.grad, expected)
    assert_agrees(rejected.grad, -expected)


@given(floats((5,)), floats((5,)), shares)
def test_swapping_the_pair_and_its_probability_mirrors(chosen, rejected, probability):
    assert_agrees(
        bradley_terry_loss(rejected, chosen, 1 - probability),
        bradley_terry_loss(chosen, rejected, probability),
    )
    assert torch.equal(centering_penalty(rejected, chosen), centering_penalty(chosen, rejected))


@given(floats((5,)), floats((5,)), shares, st.floats(-100, 100))
def test_only_differences_of_scores_count(chosen, rejected, probability, shift):
    assert_agrees(
        bradley_terry_loss(chosen + shift, rejected + shift, probability),
        bradley_terry_loss(chosen, rejected, probability),
    )


@given(floats((5,)), floats((5,)), shares)
def test_averaging_judgments_averages_the_loss(chosen, rejected, probability):
    for_first = bradley_terry_loss(chosen, rejected)
    for_second = bradley_terry_loss(rejected, chosen)
    assert_agrees(
        bradley_terry_loss(chosen, rejected, probability),
        probability * for_first + (1 - probability) * for_second,
    )


@given(floats((5,)), floats((5,)), shares)
def test_pairs_do_not_see_each_other(chosen, rejected, probability):
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(
        bradley_terry_loss(chosen[order], rejected[order], probability[order]),
        bradley_terry_loss(chosen, rejected, probability)[order],
    )


def test_equal_scores_cost_log_two():
    zeros = torch.zeros(1)
    assert_agrees(bradley_terry_loss(zeros, zeros), [math.log(2)])


def test_large_differences_stay_finite_in_float32():
    chosen = torch.tensor([-200.0, 200.0], requires_grad=True)
    loss = bradley_terry_loss(chosen, -chosen.detach())
    loss.sum().backward()
    assert loss.tolist() == [400.0, 0.0]
    assert chosen.grad.tolist() == [-1.0, 0.0]


def test_bfloat16_scores_are_compared_in_float32():
    chosen, rejected = torch.tensor([1.5]).bfloat16(), torch.tensor([-0.25]).bfloat16()
    assert_agrees(bradley_terry_loss(chosen, rejected), [oracle.loss(1.5, -0.25)], torch.float32)
    assert_agrees(centering_penalty(chosen, rejected), [1.5625], torch.float32)


@both_precisions
def test_centering_agrees_and_pulls_both_scores_to_zero(dtype):
    chosen, rejected = normal(6, dtype=dtype).requires_grad_(), normal(6, dtype=dtype)
    penalty = centering_penalty(chosen, rejected)
    golden = np.vectorize(oracle.centering)(chosen.detach().double(), rejected.double())
    assert_agrees(penalty, golden, dtype)
    penalty.sum().backward()
    assert_agrees(chosen.grad, 2 * (chosen.detach() + rejected), dtype)


@pytest.mark.parametrize("wrong", [torch.zeros(3, 1), torch.zeros(1)])
def test_shapes_that_would_broadcast_are_refused(wrong):
    scores = torch.zeros(3)
    for arguments in [(scores, wrong), (scores, scores, wrong), (scores, scores, None, wrong)]:
        with pytest.raises(SHAPE_ERRORS):
            bradley_terry_loss(*arguments)
    with pytest.raises(SHAPE_ERRORS):
        centering_penalty(scores, wrong)


@both_precisions
def test_a_margin_is_taken_off_the_difference(dtype):
    chosen, rejected, margin = (normal(8, dtype=dtype) for _ in range(3))
    probability = torch.linspace(0, 1, 8, dtype=dtype)
    golden = np.vectorize(oracle.loss)(
        chosen.double(), rejected.double(), probability.double(), margin.double()
    )
    assert_agrees(bradley_terry_loss(chosen, rejected, probability, margin), golden, dtype)
    assert torch.equal(
        bradley_terry_loss(chosen, rejected, probability, torch.zeros(())),
        bradley_terry_loss(chosen, rejected, probability),
    )
