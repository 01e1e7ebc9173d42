"""What every preference loss must do; test files beside this one say what each does of its own."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import preference
from lit_rlhf.objectives.preference import Divergence, PreferenceLoss
from tests.objectives.agreement import SHAPE_ERRORS, assert_agrees, both_precisions, floats
from tests.objectives.preference.cases import (
    CASES,
    KINDS,
    golden,
    identify,
    make_pairs,
    random_logprobs,
)

every_case = pytest.mark.parametrize("case", CASES, ids=identify)
# Properties do not depend on settings.
every_kind = pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)
LOCAL = [case for case in KINDS if case.name != "AOT"]  # which sorts the pairs of a batch


def test_every_loss_has_an_oracle():
    losses = {
        name
        for name in preference.__all__
        if dataclasses.is_dataclass(getattr(preference, name))
        and issubclass(getattr(preference, name), PreferenceLoss)
    }
    assert {case.name for case in CASES} == losses
    divergences = {kind for kind in Divergence.__subclasses__() if "lit_rlhf" in kind.__module__}
    used = {type(getattr(case.loss, "divergence", None)) for case in CASES}
    assert divergences <= used


@both_precisions
@every_case
def test_losses_agree_with_the_paper(case, dtype):
    pairs = make_pairs(random_logprobs(9, dtype), case.loss)
    assert_agrees(case.loss(pairs).losses, golden(case, pairs), dtype)


@every_case
def test_gradients_are_those_of_finite_differences(case):
    logprobs = random_logprobs(4).requires_grad_()
    inputs = [row.detach().requires_grad_() for row in logprobs]

    def losses(*rows):
        return case.loss(make_pairs(torch.stack(rows), case.loss)).losses

    assert torch.autograd.gradcheck(losses, inputs)


@every_case
def test_rewards_carry_no_gradient_and_agree_with_the_labels_when_the_loss_is_low(case):
    logprobs = random_logprobs(5).requires_grad_()
    output = case.loss(make_pairs(logprobs, case.loss))
    assert output.losses.requires_grad
    assert not output.chosen_rewards.requires_grad
    assert not output.rejected_rewards.requires_grad


@every_case
def test_a_step_against_the_gradient_lets_the_better_response_win(case):
    """Of certain labels, from a policy that equals its reference."""
    if getattr(case.loss, "temperature", 1.0) == 0.05:
        pytest.skip("DiscoPOP has a local minimum at a small negative margin, see test_discopop")
    logprobs = torch.tensor([[-4.0], [-4.5], [-4.0], [-4.5]], dtype=torch.float64)
    policy, reference = logprobs[:2].clone().requires_grad_(), logprobs[2:]
    pairs = make_pairs(
        torch.cat([policy, reference]),
        case.loss,
        probability=torch.ones(1),
        lengths=torch.full((2, 1), 5),
    )
    case.loss(pairs).losses.sum().backward()
    pull_chosen, pull_rejected = -policy.grad[:, 0]
    assert pull_chosen > pull_rejected
    assert (pull_chosen > 0) == (case.name != "APODown")


@pytest.mark.parametrize("case", LOCAL, ids=lambda case: case.name)
@given(floats((4, 4), -20.0, -0.5), st.permutations(range(4)))
def test_pairs_do_not_see_each_other(case, logprobs, order):
    pairs = make_pairs(logprobs, case.loss)
    output = case.loss(pairs)
    point = {"reference_point": pairs.reference_point}
    permuted = {
        name: None if value is None else value[order]
        for name, value in pairs._asdict().items()
        if name not in point
    }
    for actual, expected in zip(case.loss(type(pairs)(**permuted, **point)), output, strict=True):
        assert torch.equal(actual, expected[order])


@pytest.mark.parametrize(
    "case",
    [case for case in KINDS if case.loss.takes_soft_labels and not case.loss.is_unpaired],
    ids=lambda case: case.name,
)
@given(floats((4, 4), -20.0, -0.5), floats((4,), 0.0, 1.0))
def test_a_soft_label_turns_round_with_its_pair(case, logprobs, probability):
    lengths = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 2]])
    pairs = make_pairs(logprobs, case.loss, probability=probability, lengths=lengths)
    turned = make_pairs(
        logprobs[[1, 0, 3, 2]], case.loss, probability=1 - probability, lengths=lengths.flip(0)
    )
    output, mirrored = case.loss(pairs), case.loss(turned)
    assert_agrees(mirrored.losses, output.losses)
    assert torch.equal(mirrored.chosen_rewards, output.rejected_rewards)


@every_kind
def test_soft_labels_mean_something_or_are_refused_by_name(case):
    pairs = make_pairs(random_logprobs(3), case.loss, probability=torch.tensor([1.0, 0.6, 0.9]))
    if case.loss.takes_soft_labels:
        certain = make_pairs(random_logprobs(3), case.loss, probability=torch.ones(3))
        assert not torch.equal(case.loss(pairs).losses, case.loss(certain).losses)
        return
    with pytest.raises(ConfigError, match=rf"{case.name} has no probability.*2 of 3.*Majority"):
        case.loss(pairs)


@every_case
def test_far_apart_policies_stay_finite_in_float32(case):
    logprobs = torch.tensor(
        [[-1e4, -1.0, -1e4], [-1.0, -1e4, -1e4], [-1.0, -1e4, -1.0], [-1e4, -1.0, -1.0]]
    ).requires_grad_()
    losses = case.loss(make_pairs(logprobs, case.loss, probability=torch.ones(3))).losses
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logprobs.grad).all()


@every_case
@pytest.mark.parametrize("place", [0, 1])
def test_an_impossible_response_costs_the_limit_or_shows(case, place):
    """Infinite logits: the loss is that of a very unlikely response, or no number at all."""
    unlikely = torch.full((4, 1), -3.0, dtype=torch.float64)
    unlikely[place] = -1e9
    impossible = unlikely.clone()
    impossible[place] = -math.inf
    certain = {"probability": torch.ones(1)}
    limit = case.loss(make_pairs(unlikely, case.loss, **certain)).losses
    found = case.loss(make_pairs(impossible, case.loss, **certain)).losses
    assert not torch.isfinite(found).all() or torch.allclose(found, limit)


@every_case
def test_bfloat16_is_computed_in_float32(case):
    logprobs = random_logprobs(5).bfloat16()
    pairs = make_pairs(logprobs, case.loss, probability=torch.ones(5))
    losses = case.loss(pairs).losses
    assert losses.dtype == torch.float32
    assert_agrees(losses, golden(case, pairs), torch.float32)


@every_case
def test_responses_of_one_token_and_of_none(case):
    """All masked: log-probability 0 of no token; the loss is finite, and so is its gradient."""
    logprobs = torch.tensor([[-1.5, 0.0]] * 4, dtype=torch.float64).requires_grad_()
    lengths = torch.tensor([[1, 0], [1, 0]])
    pairs = make_pairs(logprobs, case.loss, probability=torch.ones(2), lengths=lengths)
    losses = case.loss(pairs).losses
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logprobs.grad).all()


@every_case
def test_a_batch_without_pairs_has_no_losses(case):
    """A process that has no pair in the last batch still takes part."""
    logprobs = torch.zeros(4, 0, requires_grad=True)
    losses = case.loss(make_pairs(logprobs, case.loss)).losses
    losses.sum().backward()
    assert losses.shape == (0,)


@every_kind
@pytest.mark.parametrize("field", ["policy_chosen", "chosen_lengths", "probability", "weight"])
def test_shapes_that_would_broadcast_are_refused(case, field):
    pairs = make_pairs(random_logprobs(3), case.loss)
    wrong = pairs._replace(**{field: getattr(pairs, field)[:, None]})
    with pytest.raises(SHAPE_ERRORS):
        case.loss(wrong)


SETTINGS = [
    (kind, field.name)
    for kind in {type(case.loss) for case in CASES}
    for field in dataclasses.fields(kind)
    if field.type == "float"
]


@pytest.mark.parametrize(("kind", "name"), sorted(SETTINGS, key=str))
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_settings_out_of_range_are_refused_by_name(kind, name, value):
    with pytest.raises(ConfigError, match=rf"loss\.{name}"):
        kind(**{name: value})


def test_a_loss_must_say_what_it_reads():
    with pytest.raises(TypeError, match="abstract"):
        PreferenceLoss()
