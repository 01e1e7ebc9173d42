import dataclasses

import pytest
import torch

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import ConstantLength, LossAggregation, SequenceMean, TokenMean, policy
from tests.objectives.agreement import SHAPE_ERRORS, assert_agrees, both_precisions, normal
from tests.objectives.policy.cases import AGGREGATIONS, identify, random_mask

every_case = pytest.mark.parametrize("case", AGGREGATIONS, ids=identify)
# Responses of three tokens, one and none.
LOSSES = torch.tensor([[1.0, 2.0, 6.0], [5.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


def test_every_aggregation_has_an_oracle():
    kinds = {
        name
        for name in policy.__all__
        if dataclasses.is_dataclass(getattr(policy, name))
        and issubclass(getattr(policy, name), LossAggregation)
    }
    assert {case.name for case in AGGREGATIONS} == kinds


@both_precisions
@every_case
@pytest.mark.parametrize("num_tokens", [6, 1, 0])
def test_losses_agree_with_the_paper(case, num_tokens, dtype):
    losses, mask = normal(7, num_tokens, dtype=dtype), random_mask(7, num_tokens)
    assert_agrees(case.aggregation(losses, mask), case.golden(losses, mask), dtype)


def test_by_hand():
    assert TokenMean()(LOSSES, MASK).item() == (1 + 2 + 6 + 5) / 4
    assert SequenceMean()(LOSSES, MASK).item() == (3 + 5) / 2
    assert ConstantLength(10)(LOSSES, MASK).item() == pytest.approx((0.9 + 0.5) / 2)


@every_case
def test_micro_batches_and_processes_add_up(case):
    losses, mask = normal(7, 5), random_mask(7, 5)
    parts = [slice(0, 3), slice(3, 4), slice(4, 7)]
    total = sum(
        (losses[part] * case.aggregation.weights(mask[part]).double()).sum() for part in parts
    )
    size = sum(case.aggregation.size(mask[part]) for part in parts)
    torch.testing.assert_close(total / size, case.aggregation(losses, mask), atol=1e-6, rtol=0)


@every_case
def test_what_is_masked_does_not_matter_and_nothing_is_zero(case):
    losses, mask = normal(4, 3).requires_grad_(), random_mask(4, 3)
    case.aggregation(losses, mask).backward()
    assert not losses.grad[~mask].any()
    assert losses.grad[mask].all()
    holed = losses.detach().masked_fill(~mask, torch.nan)
    assert torch.equal(case.aggregation(holed, mask), case.aggregation(losses, mask))
    assert case.aggregation(losses, torch.zeros_like(mask)).item() == 0.0
    assert not case.aggregation.weights(mask)[~mask].any()


@every_case
def test_gradients_are_those_of_finite_differences(case):
    mask = random_mask(4, 3)
    losses = normal(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: case.aggregation(values, mask), losses)


@every_case
def test_bfloat16_is_computed_in_float32(case):
    losses, mask = normal(4, 3).bfloat16(), random_mask(4, 3)
    total = case.aggregation(losses, mask)
    assert_agrees(total, case.golden(losses, mask), torch.float32)


@every_case
def test_shapes_that_would_broadcast_are_refused(case):
    with pytest.raises(SHAPE_ERRORS):
        case.aggregation(torch.zeros(2, 3), torch.ones(2, 1, dtype=torch.bool))


@pytest.mark.parametrize("length", [0, -1])
def test_a_length_must_be_positive(length):
    with pytest.raises(ConfigError, match=r"aggregation\.length"):
        ConstantLength(length)
