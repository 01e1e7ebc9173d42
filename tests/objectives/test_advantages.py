import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import GAE, RLOO, AdvantageEstimator
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

GROUPS = torch.tensor([7, 7, 3, 3, 3, 9, 9])
each_estimator = pytest.mark.parametrize("estimator", [GAE(0.9, 0.8), RLOO()], ids=["gae", "rloo"])


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


@both_precisions
def test_rloo_agrees_with_leaving_one_out(dtype):
    rewards, mask = normal(7, 5, dtype=dtype), random_mask(7, 5)
    output = RLOO()(rewards, None, mask, GROUPS)
    golden = oracle.rloo(rewards.numpy(), mask.numpy(), GROUPS.tolist())
    assert_agrees(output.advantages, golden, dtype)
    assert output.returns is None


def test_rloo_by_hand():
    # Rewards 6, 3, 0 of one prompt: baselines 1.5, 3, 4.5.
    rewards = torch.tensor([[2.0, 4.0], [3.0, 9.0], [0.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    output = RLOO(3)(rewards, None, mask, torch.tensor([5, 5, 5]))
    assert_agrees(output.advantages, [[4.5, 4.5], [0.0, 0.0], [-4.5, -4.5]])


@given(floats((7, 2)), st.permutations(range(7)))
def test_rloo_does_not_depend_on_the_order_of_rows(rewards, order):
    advantages = RLOO()(rewards, None, all_true(7, 2), GROUPS).advantages
    order = torch.tensor(order)
    permuted = RLOO()(rewards[order], None, all_true(7, 2), GROUPS[order]).advantages
    assert_agrees(permuted, advantages[order])


@given(floats((7, 1)), st.floats(-20, 20))
def test_rloo_advantages_of_a_group_sum_to_zero_whatever_its_level(rewards, shift):
    advantages = RLOO()(rewards, None, all_true(7, 1), GROUPS).advantages
    for group in (7, 3, 9):
        assert_agrees(advantages[group == GROUPS].sum() + 0.0, 0.0)
    shifted = rewards + shift * (GROUPS == 3)[:, None]
    assert_agrees(RLOO()(shifted, None, all_true(7, 1), GROUPS).advantages, advantages)


def test_a_response_without_tokens_counts_as_reward_zero_in_its_group():
    rewards, mask = torch.tensor([[4.0], [math.nan]]), torch.tensor([[True], [False]])
    output = RLOO()(rewards, None, mask, torch.tensor([0, 0]))
    assert output.advantages.tolist() == [[4.0], [0.0]]


def test_a_group_of_one_is_refused():
    with pytest.raises(ConfigError, match="1 of 2 groups have one"):
        RLOO()(torch.zeros(3, 2), None, all_true(3, 2), torch.tensor([0, 0, 1]))


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


def test_values_and_groups_that_do_not_fit_are_refused():
    zeros, mask, groups = torch.zeros(2, 3), all_true(2, 3), torch.tensor([0, 0])
    with pytest.raises(SHAPE_ERRORS):
        GAE()(zeros, zeros[:1], mask, groups)
    with pytest.raises(SHAPE_ERRORS):
        RLOO()(zeros, None, mask, groups[:1])


@pytest.mark.parametrize("name", ["gamma", "gae_lambda"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_discounts_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"advantage\.{name}"):
        GAE(**{name: value})


def test_one_sample_is_too_few_for_rloo():
    with pytest.raises(ConfigError, match=r"advantage\.k is 1"):
        RLOO(1)


def test_estimators_say_what_they_need():
    assert (GAE().requires_values, GAE().samples_per_prompt) == (True, 1)
    assert (RLOO(5).requires_values, RLOO(5).samples_per_prompt) == (False, 5)
    with pytest.raises(TypeError, match="abstract"):
        AdvantageEstimator()
