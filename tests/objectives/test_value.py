import math

import pytest
import torch
from hypothesis import given

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import clipped_value_loss
from tests.objectives.agreement import SHAPE_ERRORS, assert_agrees, both_precisions, floats, normal
from tests.oracles import policy_gradient as oracle


@both_precisions
@pytest.mark.parametrize("clip_range", [0.2, 0.5, None])
def test_losses_and_clip_marks_agree_with_the_paper(clip_range, dtype):
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


@pytest.mark.parametrize("clip_range", [0.2, None])
def test_gradients_are_those_of_finite_differences(clip_range):
    values, old, returns = normal(4, 5).requires_grad_(), normal(4, 5), normal(4, 5)
    assert torch.autograd.gradcheck(
        lambda v: clipped_value_loss(v, old, returns, clip_range=clip_range).losses, values
    )


@given(floats((3, 4)), floats((3, 4)))
def test_unchanged_values_clip_nothing(values, returns):
    output = clipped_value_loss(values, values, returns)
    assert not output.is_clipped.any()
    assert_agrees(output.losses, (values - returns).square() / 2)


@given(floats((3, 4)), floats((3, 4)), floats((3, 4)))
def test_clipping_never_lowers_a_loss_and_elements_stay_apart(values, old, returns):
    output = clipped_value_loss(values, old, returns)
    assert (output.losses >= clipped_value_loss(values, old, returns, clip_range=None).losses).all()
    flipped = [tensor.flip(0, 1) for tensor in (values, old, returns)]
    for actual, expected in zip(clipped_value_loss(*flipped), output, strict=True):
        assert torch.equal(actual, expected.flip(0, 1))


def test_bfloat16_is_computed_in_float32():
    values, old, returns = (torch.tensor([x]).bfloat16() for x in (-1.0, -1.125, 0.5))
    assert_agrees(clipped_value_loss(values, old, returns).losses, [1.5**2 / 2], torch.float32)


@pytest.mark.parametrize("clip_range", [0.0, -0.2, math.nan])
def test_a_clip_range_must_be_positive(clip_range):
    ones = torch.ones(2)
    with pytest.raises(ConfigError, match="clip_range"):
        clipped_value_loss(ones, ones, ones, clip_range=clip_range)


@pytest.mark.parametrize("position", range(3))
def test_shapes_that_would_broadcast_are_refused(position):
    arguments = [torch.zeros(2, 3) for _ in range(3)]
    arguments[position] = torch.zeros(2, 1)
    with pytest.raises(SHAPE_ERRORS):
        clipped_value_loss(*arguments)
