import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.objectives import GAE, LengthAdaptiveGAE
from tests.objectives.advantage.cases import make_tokens
from tests.objectives.agreement import assert_agrees, floats


def test_gae_by_hand():
    # delta = (0 + .5*2 - 1, 1 + 0 - 2) = (0, -1); advantages = (0 + .5*.5*-1, -1)
    tokens = make_tokens(torch.tensor([[0.0, 1.0]]), values=torch.tensor([[1.0, 2.0]]))
    output = GAE(0.5, 0.5)(tokens)
    assert_agrees(output.advantages, [[-0.25, -1.0]])
    assert_agrees(output.returns, [[0.75, 1.0]])


@given(floats((3, 5)), floats((3, 5)), st.floats(0.0, 1.0))
def test_lambda_one_gives_monte_carlo_returns_minus_values(rewards, values, gamma):
    output = GAE(gamma, 1.0)(make_tokens(rewards, values=values))
    discounted = [
        [sum(gamma ** (s - t) * row[s] for s in range(t, 5)) for t in range(5)]
        for row in rewards.tolist()
    ]
    assert_agrees(output.returns, discounted)
    assert_agrees(output.advantages, torch.tensor(discounted, dtype=torch.float64) - values)


@given(floats((3, 5)), floats((3, 5)), st.floats(0.0, 1.0))
def test_lambda_zero_gives_the_one_step_error(rewards, values, gamma):
    output = GAE(gamma, 0.0)(make_tokens(rewards, values=values))
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    assert_agrees(output.advantages, rewards + gamma * following - values)


@given(floats((3, 5)), floats((3, 5)))
def test_the_critics_lambda_changes_the_returns_alone(rewards, values):
    tokens = make_tokens(rewards, values=values)
    apart = GAE(0.9, 0.5, critic_lambda=1.0)(tokens)
    assert torch.equal(apart.advantages, GAE(0.9, 0.5)(tokens).advantages)
    assert_agrees(apart.returns, GAE(0.9, 1.0)(tokens).returns)


def test_lambda_grows_with_the_length():
    """Of alpha 0.5: 2 tokens have lambda 0, 4 tokens 0.5, and one token is its own error."""
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    tokens = make_tokens(torch.randn(3, 4, dtype=torch.float64), mask)
    output = LengthAdaptiveGAE(alpha=0.5)(tokens)
    assert_agrees(output.advantages[0], GAE(gae_lambda=0.5)(tokens).advantages[0])
    assert_agrees(output.advantages[1:], GAE(gae_lambda=0.0)(tokens).advantages[1:])
    assert_agrees(output.returns, GAE(gae_lambda=1.0)(tokens).returns)


def test_a_critic_is_asked_for():
    for estimator in (GAE(), LengthAdaptiveGAE()):
        assert (estimator.requires_values, estimator.samples_per_prompt) == (True, 1)
