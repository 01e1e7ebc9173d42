import math

import pytest
import torch
from hypothesis import given

from lit_rlhf.objectives import PPOClip
from tests.objectives.agreement import floats
from tests.objectives.policy.cases import all_count


def at_ratio(loss, ratio, advantage):
    """Return loss, clip mark and gradient of one token."""
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(1, 1, dtype=torch.float64)
    output = loss(all_count(logprobs, zeros, zeros + advantage))
    output.losses.sum().backward()
    return output.losses.item(), output.is_clipped.item(), logprobs.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "is_clipped", "gradient"),
    [
        (1.1, 2.0, -2.2, False, -2.2),  # inside the range: gradient -advantage * ratio
        (1.5, 2.0, -2.4, True, 0.0),  # already much likelier and good: no further
        (0.5, 2.0, -1.0, False, -1.0),  # good but less likely: pulled back
        (0.5, -2.0, 1.6, True, 0.0),  # already much less likely and bad: no further
        (1.5, -2.0, 3.0, False, 3.0),  # bad but likelier: pushed down
    ],
)
def test_the_five_cases_of_clipping(ratio, advantage, loss, is_clipped, gradient):
    found = at_ratio(PPOClip(), ratio, advantage)
    assert found == (pytest.approx(loss), is_clipped, pytest.approx(gradient))


def test_gains_may_go_further_than_losses():
    loss = PPOClip(0.2, clip_range_high=0.6)
    assert at_ratio(loss, 1.5, 2.0) == (pytest.approx(-3.0), False, pytest.approx(-3.0))
    assert at_ratio(loss, 1.7, 2.0) == (pytest.approx(-3.2), True, 0.0)
    assert at_ratio(loss, 0.7, -2.0) == (pytest.approx(1.6), True, 0.0)


def test_the_dual_clip_bounds_what_a_bad_token_costs():
    loss = PPOClip(dual_clip=3.0)
    assert at_ratio(loss, 2.5, -2.0) == (pytest.approx(5.0), False, pytest.approx(5.0))
    assert at_ratio(loss, 9.0, -2.0) == (pytest.approx(6.0), True, 0.0)
    assert at_ratio(loss, 9.0, 2.0) == at_ratio(PPOClip(), 9.0, 2.0)


@given(floats((3, 4)), floats((3, 4)), floats((3, 4)))
def test_clipping_never_lowers_a_loss(logprobs, old, advantages):
    output = PPOClip()(all_count(logprobs, old, advantages))
    ratio = (logprobs - old).clamp(-20, 20).exp()
    assert (output.losses >= -advantages * ratio).all()


def test_a_ratio_out_of_all_bounds_is_that_of_the_bound():
    ones = torch.ones(1, 1)
    output = PPOClip()(all_count(1000 * ones, 0 * ones, -ones))
    assert output.losses.item() == pytest.approx(math.exp(20.0), rel=1e-5)
