"""What every policy loss must do; test files beside this one say what each does of its own."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import PolicyLoss, policy
from lit_rlhf.objectives.policy import PolicyTokens
from tests.objectives.agreement import SHAPE_ERRORS, assert_agrees, both_precisions, floats, masks
from tests.objectives.policy.cases import CASES, KINDS, all_count, identify, random_tokens

every_case = pytest.mark.parametrize("case", CASES, ids=identify)
every_kind = pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)


def test_every_loss_has_an_oracle():
    losses = {
        name
        for name in policy.__all__
        if dataclasses.is_dataclass(getattr(policy, name))
        and issubclass(getattr(policy, name), PolicyLoss)
    }
    assert {case.name for case in CASES} == losses


@both_precisions
@every_case
@pytest.mark.parametrize("num_tokens", [6, 1, 0])
def test_losses_and_clip_marks_agree_with_the_paper(case, num_tokens, dtype):
    tokens = random_tokens(dtype, num_tokens)
    output, mask = case.loss(tokens), tokens.response_mask
    golden = [token for row in case.golden(tokens) for token in row]
    losses, is_clipped = zip(*golden, strict=True) if golden else ((), ())
    assert_agrees(output.losses[mask], losses, dtype)
    assert output.is_clipped[mask].tolist() == list(is_clipped)


@every_case
def test_settings_take_effect(case):
    """Some tokens are clipped and some are not, else the other tests say little."""
    tokens = random_tokens(num_tokens=40, spread=1.5)
    is_clipped = case.loss(tokens).is_clipped[tokens.response_mask]
    assert is_clipped.any()
    assert not is_clipped.all()


@every_case
def test_gradients_are_those_of_finite_differences(case):
    if case.name == "CISPO":
        pytest.skip("its weight is held constant: see test_cispo.py")
    tokens = random_tokens()

    def losses(logprobs):
        return case.loss(tokens._replace(logprobs=logprobs)).losses * tokens.response_mask

    assert torch.autograd.gradcheck(losses, tokens.logprobs.clone().requires_grad_())


@every_case
def test_at_ratio_one_nothing_is_clipped_and_the_gradient_is_reinforce(case):
    tokens = random_tokens()
    logprobs = tokens.logprobs.clone().requires_grad_()
    tokens = tokens._replace(logprobs=logprobs, old_logprobs=tokens.logprobs)
    output, mask = case.loss(tokens), tokens.response_mask
    assert not output.is_clipped.any()
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    aggregated = (output.losses * mask / lengths).sum()  # each response counts alike
    aggregated.backward()
    expected = -tokens.advantages * mask / lengths
    if case.name == "GSPO":
        mean = (tokens.advantages * mask).sum(1, keepdim=True) / lengths
        expected = -mean * mask / (lengths if case.loss.per_token else 1)
    assert_agrees(logprobs.grad, expected)


@every_case
@given(
    floats((3, 4), -5, 0), floats((3, 4), -5, 0), floats((3, 4)), masks((3, 4)),
    st.permutations(range(3)),
)  # fmt: skip
def test_responses_do_not_see_each_other_nor_what_is_masked(
    case, logprobs, old, advantages, mask, order
):
    output = case.loss(PolicyTokens(logprobs, old, advantages, mask))
    nonsense = PolicyTokens(
        *(part.masked_fill(~mask, -9.0) for part in (logprobs, old, advantages)), mask
    )
    moved = case.loss(PolicyTokens(*(part[order] for part in nonsense)))
    for actual, expected in zip(moved, output, strict=True):
        assert_agrees(actual[mask[order]].double(), expected[order][mask[order]].double())


@every_case
@pytest.mark.parametrize("log_ratio", [-1000.0, 1000.0, -math.inf, math.inf])
def test_a_ratio_out_of_all_bounds_costs_no_nan(case, log_ratio):
    logprobs = torch.tensor([[log_ratio]], requires_grad=True)
    output = case.loss(all_count(logprobs, torch.zeros(1, 1), -torch.ones(1, 1)))
    output.losses.sum().backward()
    if case.name == "CISPO":  # which is linear in the log-probability
        assert torch.isfinite(logprobs.grad).all()
        assert math.isfinite(output.losses.item()) == math.isfinite(log_ratio)
    else:
        assert torch.isfinite(output.losses).all()
        assert logprobs.grad.tolist() == [[0.0]]


@every_case
def test_bfloat16_is_computed_in_float32(case):
    tokens = random_tokens()
    rough = PolicyTokens(*(part.bfloat16() for part in tokens[:3]), tokens.response_mask)
    output = case.loss(rough)
    golden = [loss for row in case.golden(rough) for loss, _ in row]
    assert output.losses.dtype == torch.float32
    torch.testing.assert_close(
        output.losses[tokens.response_mask], torch.tensor(golden), rtol=1e-5, atol=1e-5
    )


@every_kind
@pytest.mark.parametrize("field", PolicyTokens._fields)
def test_shapes_that_would_broadcast_are_refused(case, field):
    tokens = random_tokens()
    wrong = tokens._replace(**{field: getattr(tokens, field)[:, :1]})
    with pytest.raises(SHAPE_ERRORS):
        case.loss(wrong)


SETTINGS = [
    (kind, field.name)
    for kind in {type(case.loss) for case in CASES}
    for field in dataclasses.fields(kind)
    if field.type.startswith("float")
]


@pytest.mark.parametrize(("kind", "name"), sorted(SETTINGS, key=str))
@pytest.mark.parametrize("value", [-0.1, 0.0, math.nan])
def test_settings_out_of_range_are_refused_by_name(kind, name, value):
    with pytest.raises(ConfigError, match=rf"update\.policy_loss\.{name}"):
        kind(**{name: value})


def test_a_loss_must_say_how_it_compares():
    with pytest.raises(TypeError, match="abstract"):
        PolicyLoss()
