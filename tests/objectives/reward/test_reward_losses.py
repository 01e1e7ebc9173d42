"""What every loss of a reward model must do."""

import dataclasses
import math

import pytest
import torch

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import reward
from lit_rlhf.objectives.reward import RewardLoss
from tests.objectives.agreement import assert_agrees, both_precisions, normal
from tests.objectives.reward.cases import CASES, NUM_RESPONSES, make_scored

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case.loss))


def test_every_loss_has_an_oracle():
    losses = {name for name in reward.__all__ if dataclasses.is_dataclass(getattr(reward, name))}
    assert {type(case.loss).__name__ for case in CASES} == losses


@both_precisions
@every_case
def test_losses_and_weights_agree_with_the_source(case, dtype):
    scored = case.make_scored(normal(NUM_RESPONSES, dtype=dtype))
    output = case.loss(scored)
    losses, weights = case.oracle(scored)
    assert_agrees(output.losses, losses, dtype)
    assert_agrees(output.weight, weights, dtype)


@every_case
def test_gradients_are_those_of_finite_differences(case):
    scores = normal(NUM_RESPONSES).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: case.loss(case.make_scored(s)).losses, scores)


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.loss.reads_steps], ids=lambda case: repr(case.loss)
)
def test_responses_do_not_depend_on_their_order(case):
    """The same responses in another order, their indices with them."""
    scored = make_scored(normal(NUM_RESPONSES))
    order = torch.randperm(NUM_RESPONSES)
    place = order.argsort()
    turned = scored._replace(
        scores=scored.scores[order],
        group=scored.group[order],
        ratings=scored.ratings[order],
        chosen=place[scored.chosen],
        rejected=place[scored.rejected],
    )
    before, after = case.loss(scored), case.loss(turned)
    assert_agrees((after.losses * after.weight).sum(), (before.losses * before.weight).sum())


@every_case
def test_large_scores_stay_finite_in_float32(case):
    scores = (torch.linspace(-200, 200, NUM_RESPONSES)).requires_grad_()
    losses = case.loss(case.make_scored(scores)).losses
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(scores.grad).all()


@every_case
def test_a_batch_without_judgments_has_no_losses(case):
    """A process that has no pair in the last batch still takes part."""
    nothing = torch.zeros(0, dtype=torch.int64)
    scores = torch.zeros(0 if case.loss.reads_steps else 2, requires_grad=True)
    scored = make_scored(torch.zeros(NUM_RESPONSES))._replace(
        scores=scores,
        group=torch.zeros(2, dtype=torch.int64),
        chosen=nothing,
        rejected=nothing,
        probability=torch.zeros(0),
        weight=torch.zeros(0),
        ratings=torch.full((2,), math.nan),
    )
    output = case.loss(scored)
    (output.losses * output.weight).sum().backward()
    assert output.losses.shape == output.weight.shape == (0,)


def test_settings_out_of_range_are_refused_by_name():
    for setting in (-0.1, math.nan):
        with pytest.raises(ConfigError, match=r"loss\.centering"):
            reward.BradleyTerryLoss(centering=setting)
    with pytest.raises(ConfigError, match=r"loss\.deviation"):
        reward.RatingRegression(deviation=0.0)
    with pytest.raises(ConfigError, match=r"loss\.mean"):
        reward.RatingRegression(mean=math.inf)


def test_a_loss_must_say_how_it_is_computed():
    with pytest.raises(TypeError, match="abstract"):
        RewardLoss()
