import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import GAE, GRPO, RLOO, AdvantageEstimator
from tests.objectives.agreement import (
    SHAPE_ERRORS,
    assert_agrees,
    both_precisions,
    floats,
    masks,
    normal,
    random_mask,
)
from tests.oracles import advantages as oracle

ESTIMATORS = {"gae": GAE(0.9, 0.8), "rloo": RLOO(), "grpo": GRPO(2), "unscaled": GRPO(2, False)}
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS.keys())


def all_true(*shape):
    return torch.ones(*shape, dtype=torch.bool)


def row_ids(rows):
    return torch.zeros(len(rows), dtype=torch.int64)


@both_precisions
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5), (0.9, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("shape", [(4, 9), (3, 1), (2, 0)])
def test_gae_agrees_with_the_sum_of_discounted_errors(gamma, gae_lambda, shape, dtype):
    rewards, values = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype)
    mask = random_mask(*shape)
    output = GAE(gamma, gae_lambda)(rewards, values, mask, row_ids(rewards))
    advantages, returns = oracle.gae(
        rewards.numpy(), values.numpy(), mask.numpy(), gamma, gae_lambda
    )
    assert_agrees(output.advantages, advantages, dtype)
    assert_agrees(output.returns, returns, dtype)


def test_gae_by_hand():
    # delta = (0 + .5*2 - 1, 1 + 0 - 2) = (0, -1); advantages = (0 + .5*.5*-1, -1)
    output = GAE(0.5, 0.5)(
        torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 2.0]]), all_true(1, 2), torch.tensor([0])
    )
    assert_agrees(output.advantages, [[-0.25, -1.0]])
    assert_agrees(output.returns, [[0.75, 1.0]])


@given(floats((3, 5)), floats((3, 5)), st.floats(0.0, 1.0))
def test_lambda_one_gives_monte_carlo_returns_minus_values(rewards, values, gamma):
    output = GAE(gamma, 1.0)(rewards, values, all_true(3, 5), row_ids(rewards))
    discounted = [
        [sum(gamma ** (s - t) * row[s] for s in range(t, 5)) for t in range(5)]
        for row in rewards.tolist()
    ]
    assert_agrees(output.returns, discounted)
    assert_agrees(output.advantages, torch.tensor(discounted, dtype=torch.float64) - values)


@given(floats((3, 5)), floats((3, 5)), st.floats(0.0, 1.0))
def test_lambda_zero_gives_the_one_step_error(rewards, values, gamma):
    output = GAE(gamma, 0.0)(rewards, values, all_true(3, 5), row_ids(rewards))
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    assert_agrees(output.advantages, rewards + gamma * following - values)


@given(floats((4, 3)), floats((4, 3)), masks((4, 3)))
def test_a_masked_token_is_as_good_as_absent(rewards, values, mask):
    estimator = GAE(0.9, 0.8)
    whole = estimator(rewards, values, mask, row_ids(rewards))
    # A masked column of nonsense in front of every column, and two behind the last.
    spread = [
        torch.nn.functional.pad(
            torch.stack([torch.full_like(tensor, math.nan), tensor], dim=2).flatten(1), (0, 2)
        )
        for tensor in (rewards, values)
    ]
    spread_mask = torch.stack([torch.zeros_like(mask), mask], dim=2).flatten(1)
    spread_mask = torch.nn.functional.pad(spread_mask, (0, 2), value=False)
    output = estimator(*spread, spread_mask, row_ids(rewards))
    for actual, expected in zip(output, whole, strict=True):
        assert_agrees(actual[:, 1:6:2], expected)
        assert not actual[~spread_mask].any()


def test_gae_without_values_is_refused():
    with pytest.raises(ValueError, match="critic"):
        GAE()(torch.zeros(1, 2), None, all_true(1, 2), torch.tensor([0]))


@each_estimator
def test_no_gradient_flows_and_bfloat16_becomes_float32(estimator):
    rewards = torch.tensor([[1.0, 2.0], [0.5, 3.0]]).bfloat16().requires_grad_()
    values = torch.tensor([[0.5, 0.25], [0.0, 1.0]]).bfloat16().requires_grad_()
    arguments = rewards, values, all_true(2, 2), torch.tensor([0, 0])
    output = estimator(*arguments)
    exact = estimator(rewards.double(), values.double(), *arguments[2:])
    assert not output.advantages.requires_grad
    assert_agrees(output.advantages, exact.advantages, torch.float32)


@each_estimator
def test_shapes_that_do_not_fit_are_refused(estimator):
    zeros, mask, groups = torch.zeros(2, 3), all_true(2, 3), torch.tensor([0, 0])
    for rewards, marks in [(zeros[:, :1], mask), (zeros, mask[:, :1])]:
        with pytest.raises(SHAPE_ERRORS):
            estimator(rewards, zeros, marks, groups)


def test_values_that_do_not_fit_are_refused():
    zeros, mask, groups = torch.zeros(2, 3), all_true(2, 3), torch.tensor([0, 0])
    with pytest.raises(SHAPE_ERRORS):
        GAE()(zeros, zeros[:1], mask, groups)


@pytest.mark.parametrize("name", ["gamma", "gae_lambda"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_discounts_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"advantage\.{name}"):
        GAE(**{name: value})


def test_estimators_say_what_they_need():
    assert (GAE().requires_values, GAE().samples_per_prompt) == (True, 1)
    with pytest.raises(TypeError, match="abstract"):
        AdvantageEstimator()
