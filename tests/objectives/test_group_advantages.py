import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import GRPO, RLOO
from tests.objectives.agreement import (
    SHAPE_ERRORS,
    assert_agrees,
    both_precisions,
    floats,
    normal,
    random_mask,
)
from tests.oracles import advantages as oracle

GROUPS = torch.tensor([7, 7, 3, 3, 3, 9, 9])
ESTIMATORS = {"rloo": RLOO(), "grpo": GRPO(2), "unscaled": GRPO(2, scale=False)}
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS.keys())


def all_true(*shape):
    return torch.ones(*shape, dtype=torch.bool)


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


@each_estimator
@given(rewards=floats((7, 2)), order=st.permutations(range(7)))
def test_advantages_do_not_depend_on_the_order_of_rows(estimator, rewards, order):
    advantages = estimator(rewards, None, all_true(7, 2), GROUPS).advantages
    order = torch.tensor(order)
    permuted = estimator(rewards[order], None, all_true(7, 2), GROUPS[order]).advantages
    assert_agrees(permuted, advantages[order])


@each_estimator
@given(rewards=floats((7, 1)), shift=st.floats(-20, 20))
def test_advantages_of_a_group_sum_to_zero_whatever_its_level(estimator, rewards, shift):
    advantages = estimator(rewards, None, all_true(7, 1), GROUPS).advantages
    for group in (7, 3, 9):
        assert_agrees(advantages[group == GROUPS].sum() + 0.0, 0.0)
    shifted = rewards + shift * (GROUPS == 3)[:, None]
    assert_agrees(estimator(shifted, None, all_true(7, 1), GROUPS).advantages, advantages)


@each_estimator
@given(rewards=floats((7, 2)))
def test_a_response_without_tokens_is_in_no_baseline(estimator, rewards):
    """As if the row were not there at all: of the groups 7, 3, 9 the second keeps two members."""
    mask, kept = all_true(7, 2), torch.tensor([0, 1, 2, 4, 5, 6])
    mask[3] = False
    left_out = estimator(
        rewards.clone().index_fill_(0, torch.tensor([3]), math.nan), None, mask, GROUPS
    )
    alone = estimator(rewards[kept], None, mask[kept], GROUPS[kept])
    assert_agrees(left_out.advantages[kept], alone.advantages)
    assert left_out.advantages[3].tolist() == [0.0, 0.0]


@each_estimator
def test_a_response_that_is_left_alone_has_nothing_to_be_compared_with(estimator):
    rewards, mask = torch.tensor([[4.0], [math.nan]]), torch.tensor([[True], [False]])
    output = estimator(rewards, None, mask, torch.tensor([0, 0]))
    assert output.advantages.tolist() == [[0.0], [0.0]]


@each_estimator
def test_a_group_of_one_is_refused(estimator):
    with pytest.raises(ConfigError, match="1 of 2 groups have one"):
        estimator(torch.zeros(3, 2), None, all_true(3, 2), torch.tensor([0, 0, 1]))


@both_precisions
@pytest.mark.parametrize("scale", [True, False])
def test_grpo_agrees_with_standard_scores_within_groups(scale, dtype):
    rewards, mask = normal(7, 5, dtype=dtype), random_mask(7, 5)
    output = GRPO(2, scale)(rewards, None, mask, GROUPS)
    golden = oracle.grpo(rewards.numpy(), mask.numpy(), GROUPS.tolist(), scale)
    assert_agrees(output.advantages, golden, dtype)
    assert output.returns is None


def test_grpo_by_hand():
    # Rewards 6, 3, 0: mean 3, deviation 3 (two degrees of freedom).
    rewards = torch.tensor([[2.0, 4.0], [3.0, 9.0], [0.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    scaled = 3 / (3 + 1e-4)
    output = GRPO(3)(rewards, None, mask, torch.tensor([5, 5, 5]))
    assert_agrees(output.advantages, [[scaled, scaled], [0.0, 0.0], [-scaled, -scaled]])


def test_grpo_of_equal_responses_is_zero():
    output = GRPO(2)(torch.full((2, 1), 0.3), None, all_true(2, 1), torch.tensor([0, 0]))
    assert output.advantages.tolist() == [[0.0], [0.0]]


@given(floats((4, 1)), st.floats(0.5, 20))
def test_scaled_grpo_does_not_depend_on_the_unit_of_rewards(rewards, unit):
    groups = torch.tensor([0, 0, 1, 1])
    assume(rewards.view(2, 2).diff().abs().min() > 1)  # beside which 1e-4 is nothing
    ours = GRPO(2)(rewards * unit, None, all_true(4, 1), groups).advantages
    plain = GRPO(2)(rewards, None, all_true(4, 1), groups).advantages
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)


@each_estimator
def test_groups_that_do_not_fit_are_refused(estimator):
    with pytest.raises(SHAPE_ERRORS):
        estimator(torch.zeros(2, 3), None, all_true(2, 3), torch.tensor([0]))


@pytest.mark.parametrize("estimator", [RLOO, GRPO])
def test_one_sample_is_too_few(estimator):
    with pytest.raises(ConfigError, match=rf"advantage\.k is 1; {estimator.__name__} compares"):
        estimator(1)


@each_estimator
def test_no_critic_is_asked_for(estimator):
    assert (estimator.requires_values, estimator.samples_per_prompt) == (False, 2)
    assert GRPO().samples_per_prompt == 8
