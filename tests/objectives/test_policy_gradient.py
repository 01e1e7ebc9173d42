import math

import numpy as np
import pytest
import torch
from hypothesis import given

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import clipped_policy_loss, clipped_value_loss
from tests.objectives.agreement import SHAPE_ERRORS, assert_agrees, both_precisions, floats, normal
from tests.oracles import policy_gradient as oracle


@both_precisions
@pytest.mark.parametrize("clip_range", [0.2, 0.5])
def test_policy_losses_and_clip_marks_agree_with_the_paper(clip_range, dtype):
    logprobs, advantages = normal(5, 8, dtype=dtype), normal(5, 8, dtype=dtype)
    old_logprobs = logprobs + normal(5, 8, dtype=dtype, scale=0.4)
    output = clipped_policy_loss(logprobs, old_logprobs, advantages, clip_range=clip_range)
    losses, is_clipped = np.vectorize(oracle.policy_loss)(
        logprobs.double(), old_logprobs.double(), advantages.double(), clip_range
    )
    assert_agrees(output.losses, losses, dtype)
    assert output.is_clipped.tolist() == is_clipped.tolist()
    assert 0 < is_clipped.mean() < 1


@both_precisions
@pytest.mark.parametrize("clip_range", [0.2, 0.5, None])
def test_value_losses_and_clip_marks_agree_with_the_paper(clip_range, dtype):
    values, returns = normal(5, 8, dtype=dtype), normal(5, 8, dtype=dtype)
    old_values = values + normal(5, 8, dtype=dtype, scale=0.4)
    output = clipped_value_loss(values, old_values, returns, clip_range=clip_range)
    golden = [
        oracle.value_loss(*numbers, clip_range)
        for numbers in zip(
            *(tensor.flatten().tolist() for tensor in (values, old_values, returns)), strict=True
        )
    ]
    losses, is_clipped = zip(*golden, strict=True)
    assert_agrees(output.losses.flatten(), losses, dtype)
    assert output.is_clipped.flatten().tolist() == list(is_clipped)
    assert any(is_clipped) == (clip_range is not None)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "is_clipped", "gradient"),
    [
        (1.1, 2.0, -2.2, False, -2.2),  # inside the range: gradient -advantage * ratio
        (1.5, 2.0, -2.4, True, 0.0),  # already much likelier and good: no further
        (0.5, 2.0, -1.0, False, -1.0),  # good but less likely: pulled back
        (0.5, -2.0, 1.6, True, 0.0),  # already much less likely and bad: no further
        (1.5, -2.0, 3.0, False, 3.0),  # bad but likelier: pushed down
    ],
)
def test_the_five_cases_of_clipping(ratio, advantage, loss, is_clipped, gradient):
    logprobs = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(1, dtype=torch.float64)
    output = clipped_policy_loss(logprobs, zeros, zeros + advantage)
    output.losses.sum().backward()
    assert_agrees(output.losses, [loss])
    assert_agrees(logprobs.grad, [gradient])
    assert output.is_clipped.tolist() == [is_clipped]


def test_gradients_are_those_of_finite_differences():
    logprobs, old_logprobs = normal(4, 5).requires_grad_(), normal(4, 5)
    advantages = normal(4, 5)
    assert torch.autograd.gradcheck(
        lambda lp: clipped_policy_loss(lp, old_logprobs, advantages).losses, logprobs
    )
    for clip_range in (0.2, None):
        assert torch.autograd.gradcheck(
            lambda v, clip_range=clip_range: (
                clipped_value_loss(v, old_logprobs, advantages, clip_range=clip_range).losses
            ),
            logprobs,
        )


@given(floats((3, 4)), floats((3, 4)))
def test_an_unchanged_policy_clips_nothing(logprobs, advantages):
    output = clipped_policy_loss(logprobs, logprobs, advantages)
    assert not output.is_clipped.any()
    assert torch.equal(output.losses, -advantages)


@given(floats((3, 4)), floats((3, 4)))
def test_unchanged_values_clip_nothing(values, returns):
    output = clipped_value_loss(values, values, returns)
    assert not output.is_clipped.any()
    assert_agrees(output.losses, (values - returns).square() / 2)


@given(floats((3, 4)), floats((3, 4)), floats((3, 4)))
def test_clipping_never_lowers_a_loss_and_elements_stay_apart(first, second, third):
    policy = clipped_policy_loss(first, second, third)
    ratio = (first - second).clamp(-20, 20).exp()
    assert (policy.losses >= -third * ratio).all()
    value = clipped_value_loss(first, second, third)
    assert (value.losses >= clipped_value_loss(first, second, third, clip_range=None).losses).all()
    flipped = [tensor.flip(0, 1) for tensor in (first, second, third)]
    for function, output in ((clipped_policy_loss, policy), (clipped_value_loss, value)):
        for actual, expected in zip(function(*flipped), output, strict=True):
            assert torch.equal(actual, expected.flip(0, 1))


@pytest.mark.parametrize("log_ratio", [-1000.0, 1000.0, -math.inf, math.inf])
def test_a_ratio_out_of_all_bounds_stays_finite(log_ratio):
    logprobs = torch.tensor([log_ratio], requires_grad=True)
    output = clipped_policy_loss(logprobs, torch.zeros(1), -torch.ones(1))
    output.losses.sum().backward()
    ratio = math.exp(20.0) if log_ratio > 0 else 0.8
    np.testing.assert_allclose(output.losses.tolist(), [ratio], rtol=1e-5)
    assert logprobs.grad.tolist() == [0.0]


def test_bfloat16_is_computed_in_float32():
    logprobs, old, advantages = (torch.tensor([x]).bfloat16() for x in (-1.0, -1.125, 0.5))
    assert_agrees(
        clipped_policy_loss(logprobs, old, advantages).losses,
        [-0.5 * math.exp(0.125)],
        torch.float32,
    )
    assert_agrees(clipped_value_loss(logprobs, old, advantages).losses, [1.5**2 / 2], torch.float32)


@pytest.mark.parametrize("clip_range", [0.0, -0.2, math.nan])
def test_a_clip_range_must_be_positive(clip_range):
    ones = torch.ones(2)
    for function in (clipped_policy_loss, clipped_value_loss):
        with pytest.raises(ConfigError, match="clip_range"):
            function(ones, ones, ones, clip_range=clip_range)


@pytest.mark.parametrize("position", range(3))
def test_shapes_that_would_broadcast_are_refused(position):
    arguments = [torch.zeros(2, 3) for _ in range(3)]
    arguments[position] = torch.zeros(2, 1)
    for function in (clipped_policy_loss, clipped_value_loss):
        with pytest.raises(SHAPE_ERRORS):
            function(*arguments)
