import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.objectives.group_scores import standardize_by_group
from tests.objectives.agreement import assert_agrees, both_precisions, floats, normal
from tests.oracles import group_scores as oracle

GROUPS = torch.tensor([7, 7, 3, 3, 3, 9, 9, 1])
NAN = torch.nan


@both_precisions
def test_scores_agree_with_plain_loops(dtype):
    scores = normal(8, dtype=dtype)
    scores[3] = NAN
    golden = oracle.standardized(scores.tolist(), GROUPS.tolist())
    assert_agrees(standardize_by_group(scores, GROUPS), golden, dtype)


def test_by_hand():
    scores = torch.tensor([1.0, 3.0, 5.0, NAN, 5.0, NAN, NAN, 2.0], dtype=torch.float64)
    half = 1 / (2**0.5 + 1e-4)
    expected = [-half, half, 0, NAN, 0, NAN, NAN, 0]  # equal, unscored, and alone
    assert_agrees(standardize_by_group(scores, GROUPS), expected)


@given(scores=floats(8, -5, 5), shift=st.floats(-9, 9), order=st.permutations(range(8)))
def test_neither_level_nor_order_counts(scores, shift, order):
    order = torch.tensor(order)
    expected = standardize_by_group(scores, GROUPS)
    moved = standardize_by_group((scores + shift)[order], GROUPS[order])
    torch.testing.assert_close(moved, expected[order], rtol=1e-6, atol=1e-6)


def test_half_precision_is_computed_in_float32_and_without_gradient():
    scores = normal(8, dtype=torch.bfloat16).requires_grad_()
    result = standardize_by_group(scores, GROUPS)
    assert (result.dtype, result.requires_grad) == (torch.float32, False)
