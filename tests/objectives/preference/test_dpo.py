import math

import torch
from hypothesis import given

from lit_rlhf.objectives import DPO
from tests.objectives.agreement import assert_agrees, floats, normal
from tests.objectives.preference.cases import make_pairs

logprobs_of_pairs = floats((4, 4))
shares = floats((4,), 0.0, 1.0)


def test_one_pair_by_hand():
    # x = -3 + 4 = 1, y = -5 + 3 = -2, beta * (x - y) = 0.3
    logprobs = torch.tensor([[-3.0], [-5.0], [-4.0], [-3.0]])
    output = DPO(beta=0.1)(make_pairs(logprobs, DPO(), probability=torch.ones(1)))
    assert_agrees(output.losses, [math.log(1 + math.exp(-0.3))])
    assert_agrees(output.chosen_rewards, [0.1])
    assert_agrees(output.rejected_rewards, [-0.2])


def test_the_gradient_of_a_certain_pair_is_that_of_the_paper():
    # beta * sigmoid(-beta * h) pulls the chosen one up and the rejected one down.
    logprobs, probability = normal(4, 6).requires_grad_(), torch.ones(6, dtype=torch.float64)
    loss = DPO(beta=0.3)
    loss(make_pairs(logprobs, loss, probability=probability)).losses.sum().backward()
    chosen, rejected, reference_chosen, reference_rejected = logprobs.detach()
    h = (chosen - reference_chosen) - (rejected - reference_rejected)
    pull = 0.3 * torch.sigmoid(-0.3 * h)
    assert_agrees(logprobs.grad, torch.stack([-pull, pull, pull, -pull]))


@given(logprobs_of_pairs, shares)
def test_a_policy_equal_to_its_reference_costs_log_two(logprobs, probability):
    for loss in (DPO(), DPO(per_token=True)):
        output = loss(make_pairs(logprobs[[0, 1, 0, 1]], loss, probability=probability))
        assert_agrees(output.losses, [math.log(2)] * 4)
        assert output.chosen_rewards.tolist() == [0.0] * 4


@given(logprobs_of_pairs, shares)
def test_smoothing_is_a_less_certain_probability(logprobs, probability):
    smoothed = probability * 0.8 + (1 - probability) * 0.2
    assert_agrees(
        DPO(label_smoothing=0.2)(make_pairs(logprobs, DPO(), probability=probability)).losses,
        DPO()(make_pairs(logprobs, DPO(), probability=smoothed)).losses,
    )


def test_per_token_a_long_response_weighs_no_more_than_a_short_one():
    logprobs = torch.tensor([[-8.0], [-2.0], [-16.0], [-4.0]])  # 8 nats of 8 tokens, 2 of 2
    loss = DPO(beta=1.0, per_token=True)
    lengths = torch.tensor([[8], [2]])
    output = loss(make_pairs(logprobs, loss, probability=torch.ones(1), lengths=lengths))
    assert_agrees(output.losses, [math.log(2)])
    assert_agrees(output.chosen_rewards, [1.0])
