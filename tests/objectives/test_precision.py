import pytest
import torch

from lit_rlhf.objectives.precision import at_least_float32, product_dtype, require_same_shape


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_becomes_float32_and_more_stays(given, expected):
    values = torch.tensor([1.5, -2.0], dtype=given)
    assert at_least_float32(values).dtype == expected
    assert at_least_float32(values).tolist() == [1.5, -2.0]


def test_shapes_that_would_broadcast_are_refused_by_name():
    with pytest.raises(ValueError, match=r"values \[4\], returns \[4, 1\]"):
        require_same_shape(values=torch.zeros(4), returns=torch.zeros(4, 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_type_of_products_is_a_linear_layers(dtype, is_enabled):
    inputs, weight = torch.ones(2, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_enabled):
        assert product_dtype(inputs) == torch.nn.functional.linear(inputs, weight).dtype
