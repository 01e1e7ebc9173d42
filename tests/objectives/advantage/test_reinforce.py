import pytest
import torch
from hypothesis import given

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import ReinforcePlusPlus, ReMax
from tests.objectives.advantage.cases import make_tokens
from tests.objectives.agreement import assert_agrees, floats


def test_reinforce_by_hand():
    tokens = make_tokens(torch.tensor([[1.0, 2.0, 4.0]]))
    assert_agrees(ReinforcePlusPlus(0.5)(tokens).advantages, [[3.0, 4.0, 4.0]])


def test_remax_by_hand():
    tokens = make_tokens(torch.tensor([[-1.0, 2.0, 4.0]]), greedy=torch.tensor([3.0]))
    assert_agrees(ReMax()(tokens).advantages, [[2.0, 3.0, 1.0]])


@given(rewards=floats((4, 1)))
def test_a_response_as_good_as_the_greedy_one_has_no_advantage(rewards):
    output = ReMax()(make_tokens(rewards, greedy=rewards[:, 0]))
    assert not output.advantages.any()


@pytest.mark.parametrize("estimator", [ReinforcePlusPlus, ReMax])
def test_no_sample_is_too_few(estimator):
    with pytest.raises(ConfigError, match=r"advantage\.k is 0"):
        estimator(k=0)
    assert estimator(k=3).samples_per_prompt == 3
