import math

import pytest
import torch
from hypothesis import given

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import DPO, PreferenceLoss
from tests.objectives.agreement import SHAPE_ERRORS, assert_agrees, both_precisions, floats, normal
from tests.oracles import preference as oracle

pairs = floats((4, 4))
shares = floats((4,), 0.0, 1.0)


@both_precisions
@pytest.mark.parametrize(("beta", "label_smoothing"), [(0.1, 0.0), (0.5, 0.2), (2.0, 0.1)])
def test_losses_and_rewards_agree_with_the_paper(beta, label_smoothing, dtype):
    logprobs = normal(4, 7, dtype=dtype, scale=5.0)
    probability = torch.linspace(0, 1, 7, dtype=dtype)
    output = DPO(beta, label_smoothing)(*logprobs, probability)
    golden = [
        oracle.dpo(*column, share, beta, label_smoothing)
        for column, share in zip(logprobs.T.tolist(), probability.tolist(), strict=True)
    ]
    for actual, expected in zip(output, zip(*golden, strict=True), strict=True):
        assert_agrees(actual, expected, dtype)


def test_one_pair_by_hand():
    # x = -3 + 4 = 1, y = -5 + 3 = -2, beta * (x - y) = 0.3
    arguments = [torch.tensor([value]) for value in (-3.0, -5.0, -4.0, -3.0, 1.0)]
    output = DPO(beta=0.1)(*arguments)
    assert_agrees(output.losses, [math.log(1 + math.exp(-0.3))])
    assert_agrees(output.chosen_rewards, [0.1])
    assert_agrees(output.rejected_rewards, [-0.2])


def test_the_gradient_of_a_certain_pair_is_that_of_the_paper():
    # beta * sigmoid(-beta * h) pulls the chosen one up and the rejected one down.
    logprobs, probability = normal(4, 6).requires_grad_(), torch.ones(6, dtype=torch.float64)
    DPO(beta=0.3)(*logprobs, probability).losses.sum().backward()
    chosen, rejected, reference_chosen, reference_rejected = logprobs.detach()
    h = (chosen - reference_chosen) - (rejected - reference_rejected)
    pull = 0.3 * torch.sigmoid(-0.3 * h)
    assert_agrees(logprobs.grad, torch.stack([-pull, pull, pull, -pull]))


def test_gradients_of_uncertain_pairs():
    inputs = [normal(3).requires_grad_() for _ in range(4)]
    probability = torch.rand(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *logprobs: DPO(0.7, 0.1)(*logprobs, probability).losses, inputs
    )


def test_rewards_carry_no_gradient():
    output = DPO()(*normal(4, 3).requires_grad_(), torch.ones(3, dtype=torch.float64))
    assert output.losses.requires_grad
    assert not output.chosen_rewards.requires_grad
    assert not output.rejected_rewards.requires_grad


@given(pairs, shares)
def test_swapping_chosen_and_rejected_mirrors(logprobs, probability):
    output = DPO(0.5, 0.1)(*logprobs, probability)
    mirrored = DPO(0.5, 0.1)(*logprobs[[1, 0, 3, 2]], 1 - probability)
    assert_agrees(mirrored.losses, output.losses)
    assert torch.equal(mirrored.chosen_rewards, output.rejected_rewards)
    assert torch.equal(mirrored.rejected_rewards, output.chosen_rewards)


@given(pairs, shares)
def test_a_policy_equal_to_its_reference_costs_log_two(logprobs, probability):
    output = DPO()(*logprobs[[0, 1, 0, 1]], probability)
    assert_agrees(output.losses, [math.log(2)] * 4)
    assert output.chosen_rewards.tolist() == [0.0] * 4


@given(pairs, shares)
def test_pairs_do_not_see_each_other(logprobs, probability):
    order = torch.tensor([2, 0, 3, 1])
    permuted = DPO()(*logprobs[:, order], probability[order])
    for actual, expected in zip(permuted, DPO()(*logprobs, probability), strict=True):
        assert torch.equal(actual, expected[order])


@given(pairs, shares)
def test_smoothing_is_a_less_certain_probability(logprobs, probability):
    smoothed = probability * 0.8 + (1 - probability) * 0.2
    assert_agrees(
        DPO(label_smoothing=0.2)(*logprobs, probability).losses, DPO()(*logprobs, smoothed).losses
    )


def test_far_apart_policies_stay_finite_in_float32():
    chosen = torch.tensor([-1e4, 1e4], requires_grad=True)
    zeros = torch.zeros(2)
    losses = DPO(beta=1.0)(chosen, zeros, zeros, zeros, torch.ones(2)).losses
    losses.sum().backward()
    assert losses.tolist() == [1e4, 0.0]
    assert chosen.grad.tolist() == [-1.0, 0.0]


def test_bfloat16_logprobs_are_compared_in_float32():
    logprobs = torch.tensor([[-3.0], [-5.0], [-4.0], [-3.0]]).bfloat16()
    output = DPO()(*logprobs, torch.ones(1))
    assert_agrees(output.losses, [math.log(1 + math.exp(-0.3))], torch.float32)


def test_settings_out_of_range_are_refused_by_name():
    for beta in (0.0, -0.1, math.nan):
        with pytest.raises(ConfigError, match=r"loss\.beta"):
            DPO(beta=beta)
    for label_smoothing in (-0.1, 0.5, math.nan):
        with pytest.raises(ConfigError, match=r"loss\.label_smoothing"):
            DPO(label_smoothing=label_smoothing)


@pytest.mark.parametrize("position", range(5))
def test_shapes_that_would_broadcast_are_refused(position):
    arguments = [torch.zeros(3) for _ in range(5)]
    arguments[position] = torch.zeros(3, 1)
    with pytest.raises(SHAPE_ERRORS):
        DPO()(*arguments)


def test_dpo_reads_the_reference_and_a_loss_must_say_so():
    assert DPO().requires_reference
    with pytest.raises(TypeError, match="abstract"):
        PreferenceLoss()
