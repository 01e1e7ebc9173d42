import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.objectives import Moments, masked_moments, whiten
from tests.objectives.agreement import (
    SHAPE_ERRORS,
    assert_agrees,
    both_precisions,
    floats,
    masks,
    normal,
    random_mask,
)
from tests.oracles import masking as oracle

NOTHING = torch.zeros(2, 3, dtype=torch.bool)


@both_precisions
@pytest.mark.parametrize("shape", [(4, 7), (1, 1), (9,)])
def test_mean_and_variance_agree_with_counting(shape, dtype):
    values, mask = normal(*shape, dtype=dtype), random_mask(*shape)
    arrays = values.numpy(), mask.numpy()
    moments = masked_moments(values, mask)
    assert moments.count == mask.sum()
    assert_agrees(moments.mean, oracle.masked_mean(*arrays), torch.float64)
    assert_agrees(moments.variance, oracle.variance(*arrays), torch.float64)


@both_precisions
def test_whitened_values_agree_with_the_formula(dtype):
    values, mask = normal(5, 6, dtype=dtype, scale=3.0) + 2.0, random_mask(5, 6)
    whitened = whiten(values, mask, masked_moments(values, mask))
    assert_agrees(whitened, oracle.whiten(values.numpy(), mask.numpy()), dtype)


def test_an_empty_mask_gives_zeros():
    values = normal(2, 3)
    moments = masked_moments(values, NOTHING)
    assert (moments.count, moments.mean, moments.variance) == (0, 0, 0)
    assert torch.equal(whiten(values, NOTHING, moments), torch.zeros(2, 3, dtype=torch.float64))


def test_gradient_of_whitening_treats_the_moments_as_constants():
    values, mask = normal(3, 4).requires_grad_(), random_mask(3, 4)
    moments = masked_moments(values, mask)
    assert torch.autograd.gradcheck(lambda v: whiten(v, mask, moments), (values,))


def test_nan_at_masked_entries_reaches_nothing():
    values = torch.tensor([1.0, math.nan, 3.0, math.inf])
    mask = torch.tensor([True, False, True, False])
    whitened = whiten(values, mask, masked_moments(values, mask))
    assert_agrees(whitened, [-1.0, 0.0, 1.0, 0.0])


def test_bfloat16_is_not_summed_as_such():
    values = torch.ones(1000, dtype=torch.bfloat16)  # a bfloat16 sum would stop at 256
    assert masked_moments(values, torch.ones(1000, dtype=torch.bool)).total == 1000


def test_the_variance_survives_a_large_mean_in_float32():
    values = torch.tensor([4095.5, 4096.5])
    assert masked_moments(values, torch.ones(2, dtype=torch.bool)).variance == 0.25


def test_rounding_does_not_make_the_variance_negative():
    values = torch.tensor([0.1, 0.1, 0.1], dtype=torch.float64)  # unguarded: -1.7e-18
    assert masked_moments(values, torch.ones(3, dtype=torch.bool)).variance == 0


def test_equal_values_whiten_to_zero():
    values, mask = torch.full((3,), 5.0), torch.ones(3, dtype=torch.bool)
    moments = masked_moments(values, mask)
    assert whiten(values, mask, moments).tolist() == [0, 0, 0]


@given(floats((6, 5)), masks((6, 5)), st.integers(1, 5))
def test_moments_of_parts_add_up_to_those_of_the_whole(values, mask, cut):
    parts = masked_moments(values[:cut], mask[:cut]), masked_moments(values[cut:], mask[cut:])
    summed = Moments(*(first + second for first, second in zip(*parts, strict=True)))
    whole = masked_moments(values, mask)
    for part, expected in zip(summed, whole, strict=True):
        assert_agrees(part, expected)
    assert_agrees(whiten(values, mask, summed)[0], whiten(values, mask, whole)[0])


@given(floats((4, 3)), masks((4, 3)))
def test_padding_changes_nothing(values, mask):
    padded = torch.nn.functional.pad(values, (0, 2), value=7.0)
    padded_mask = torch.nn.functional.pad(mask, (0, 2), value=False)
    moments = masked_moments(padded, padded_mask)
    whitened = whiten(values, mask, masked_moments(values, mask))
    assert_agrees(whiten(padded, padded_mask, moments)[:, :3], whitened)


@pytest.mark.parametrize(
    "function",
    [masked_moments, lambda v, m: whiten(v, m, Moments(v, v, v))],
)
def test_a_mask_of_another_shape_is_refused(function):
    with pytest.raises(SHAPE_ERRORS):
        function(torch.zeros(2, 3), torch.ones(2, 1, dtype=torch.bool))
