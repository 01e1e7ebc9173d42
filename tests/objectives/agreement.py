"""What "equal to the oracle" means for the tests of this folder, and which inputs they use."""

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

# The type annotations complain first while the tests check them, the functions otherwise.
SHAPE_ERRORS = (ValueError, TypeError)

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
both_precisions = pytest.mark.parametrize("dtype", TOLERANCES, ids=["float64", "float32"])


def assert_agrees(actual, expected, dtype=None):
    """Compare a tensor with an oracle's numbers, at the tolerance of its type."""
    assert actual.dtype == (dtype or actual.dtype)
    tolerance = TOLERANCES[actual.dtype]
    np.testing.assert_allclose(
        actual.detach().numpy(), np.asarray(expected), rtol=tolerance, atol=tolerance
    )


def normal(*shape, dtype=torch.float64, scale=1.0):
    return torch.randn(*shape, dtype=torch.float64).mul(scale).to(dtype)


def random_mask(*shape):
    """Some entries True; in a matrix, the first row without any and the last row full."""
    mask = torch.rand(*shape) < 0.6
    if len(shape) == 2:
        mask[0], mask[-1] = False, True
    return mask


def floats(shape, low=-30.0, high=30.0):
    """A strategy for float64 tensors of moderate size."""
    return arrays(np.float64, shape, elements=st.floats(low, high, width=32)).map(torch.from_numpy)


def masks(shape):
    return arrays(np.bool_, shape).map(torch.from_numpy)
