import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import GRPO, RLOO, ReinforcePlusPlusBaseline
from tests.objectives.advantage.cases import make_tokens
from tests.objectives.agreement import assert_agrees, floats

# Rewards 6, 3, 0 of one prompt.
BY_HAND = make_tokens(
    torch.tensor([[2.0, 4.0], [3.0, 9.0], [0.0, 0.0]]),
    torch.tensor([[True, True], [True, False], [True, True]]),
    torch.tensor([5, 5, 5]),
)


def test_rloo_by_hand():
    # Baselines 1.5, 3, 4.5.
    assert_agrees(RLOO(3)(BY_HAND).advantages, [[4.5, 4.5], [0.0, 0.0], [-4.5, -4.5]])


@pytest.mark.parametrize(("scale", "deviation"), [("group", 3.0), ("batch", 3.0), ("none", None)])
def test_grpo_by_hand(scale, deviation):
    # Mean 3, deviation 3 (two degrees of freedom).
    one = 3.0 if deviation is None else 3.0 / (deviation + 1e-4)
    output = GRPO(3, scale)(BY_HAND)
    assert_agrees(output.advantages, [[one, one], [0.0, 0.0], [-one, -one]])


def test_a_prompt_whose_responses_hardly_differ_counts_little_by_the_batchs_deviation():
    rewards = torch.tensor([[1.0], [1.1], [5.0], [-5.0]])
    tokens = make_tokens(rewards, groups=torch.tensor([0, 0, 1, 1]))
    by_group, by_batch = (GRPO(2, scale)(tokens).advantages.abs() for scale in ("group", "batch"))
    torch.testing.assert_close(by_group, torch.full((4, 1), 0.5**0.5), atol=1e-2, rtol=0)
    assert by_batch[0] < by_batch[2] / 50


def test_grpo_of_equal_responses_is_zero():
    for scale in ("group", "batch", "none"):
        output = GRPO(2, scale)(make_tokens(torch.full((2, 1), 0.3)))
        assert output.advantages.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("scale", ["group", "batch"])
@given(rewards=floats((4, 1)), unit=st.floats(0.5, 20))
def test_scaled_grpo_does_not_depend_on_the_unit_of_rewards(scale, rewards, unit):
    groups = torch.tensor([0, 0, 1, 1])
    assume(rewards.view(2, 2).diff().abs().min() > 1)  # beside which 1e-4 is nothing
    ours = GRPO(2, scale)(make_tokens(rewards * unit, groups=groups)).advantages
    plain = GRPO(2, scale)(make_tokens(rewards, groups=groups)).advantages
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("estimator", [RLOO, GRPO, ReinforcePlusPlusBaseline])
def test_one_sample_is_too_few(estimator):
    with pytest.raises(ConfigError, match=rf"advantage\.k is 1; {estimator.__name__} compares"):
        estimator(1)


@pytest.mark.parametrize("scale", ["std", True, False])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises((ConfigError, TypeError), match="scale"):
        GRPO(2, scale)


def test_no_critic_is_asked_for():
    assert (RLOO().requires_values, RLOO().samples_per_prompt) == (False, 2)
    assert GRPO().samples_per_prompt == 8
