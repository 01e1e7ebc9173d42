"""What every estimator must do; test files beside this one say what each does of its own."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import AdvantageEstimator, Moments, advantage
from tests.objectives.advantage.cases import (
    CASES,
    COMPARING,
    KINDS,
    identify,
    make_tokens,
    random_tokens,
)
from tests.objectives.agreement import SHAPE_ERRORS, assert_agrees, both_precisions, floats, masks

every_case = pytest.mark.parametrize("case", CASES, ids=identify)
every_kind = pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)
SIX = torch.tensor([0, 0, 0, 1, 1, 1])


def test_every_estimator_has_an_oracle():
    kinds = {
        name
        for name in advantage.__all__
        if dataclasses.is_dataclass(getattr(advantage, name))
        and issubclass(getattr(advantage, name), AdvantageEstimator)
    }
    assert {case.name for case in CASES} == kinds


@both_precisions
@every_case
@pytest.mark.parametrize("num_tokens", [6, 1, 0])
def test_advantages_and_returns_agree_with_the_paper(case, num_tokens, dtype):
    tokens = random_tokens(dtype, num_tokens)
    output, (advantages, returns) = case.estimator(tokens), case.golden(tokens)
    assert_agrees(output.advantages, advantages, dtype)
    if case.estimator.requires_values:
        assert_agrees(output.returns, returns, dtype)
    else:
        assert output.returns is None


@every_case
def test_no_gradient_flows_and_bfloat16_becomes_float32(case):
    rewards = torch.tensor([[1.0, 2.0], [0.5, 3.0]]).bfloat16().requires_grad_()
    values = torch.tensor([[0.5, 0.25], [0.0, 1.0]]).bfloat16().requires_grad_()
    tokens = make_tokens(rewards, values=values)
    output = case.estimator(tokens)
    exact = case.golden(tokens)
    assert not output.advantages.requires_grad
    assert_agrees(output.advantages, exact[0], torch.float32)


@every_case
@given(rewards=floats((6, 3)), mask=masks((6, 3)))
def test_a_masked_token_is_as_good_as_absent(case, rewards, mask):
    whole = case.estimator(make_tokens(rewards, mask, SIX))
    values = torch.linspace(-1, 1, 18).view(6, 3).double()
    # A masked column of nonsense in front of every column, and two behind the last.
    apart = [
        torch.nn.functional.pad(
            torch.stack([torch.full_like(tensor, math.nan), tensor], dim=2).flatten(1), (0, 2)
        )
        for tensor in (rewards, values)
    ]
    apart_mask = torch.stack([torch.zeros_like(mask), mask], dim=2).flatten(1)
    apart_mask = torch.nn.functional.pad(apart_mask, (0, 2), value=False)
    output = case.estimator(make_tokens(apart[0], apart_mask, SIX, values=apart[1]))
    for actual, expected in zip(output, whole, strict=True):
        if expected is not None:
            assert_agrees(actual[:, 1:6:2], expected)
            assert not actual[~apart_mask].any()


@every_case
@given(rewards=floats((6, 2)), order=st.permutations(range(6)))
def test_advantages_do_not_depend_on_the_order_of_rows(case, rewards, order):
    tokens = make_tokens(rewards, groups=SIX)
    order = torch.tensor(order)
    permuted = tokens._replace(
        **{name: part[order] for name, part in tokens._asdict().items() if part is not None}
    )
    assert_agrees(case.estimator(permuted).advantages, case.estimator(tokens).advantages[order])


@every_case
def test_where_nothing_counts_all_is_zero(case):
    tokens = make_tokens(torch.full((4, 2), math.nan), torch.zeros(4, 2, dtype=torch.bool))
    assert not case.estimator(tokens).advantages.any()


@every_kind
@pytest.mark.parametrize("field", ["token_rewards", "response_mask", "group_ids"])
def test_shapes_that_do_not_fit_are_refused(case, field):
    tokens = make_tokens(torch.zeros(4, 3))
    wrong = tokens._replace(**{field: getattr(tokens, field)[:1]})
    with pytest.raises(SHAPE_ERRORS):
        case.estimator(wrong)


@every_kind
@pytest.mark.parametrize(
    ("field", "claim", "word"),
    [("values", "requires_values", "critic"), ("greedy_scores", "requires_greedy", "greedy")],
)
def test_what_is_read_must_be_there_and_the_rest_need_not(case, field, claim, word):
    tokens = make_tokens(torch.zeros(4, 3))._replace(**{field: None})
    if getattr(case.estimator, claim):
        with pytest.raises(ValueError, match=f"{case.name} needs.*{word}"):
            case.estimator(tokens)
    else:
        case.estimator(tokens)


@pytest.mark.parametrize("case", COMPARING, ids=identify)
@given(rewards=floats((6, 1)), shift=st.floats(-20, 20))
def test_advantages_of_a_group_sum_to_zero_whatever_its_level(case, rewards, shift):
    tokens = make_tokens(rewards, groups=SIX)
    tokens = tokens._replace(moments=tokens.own_moments())
    advantages = case.estimator(tokens).advantages
    for group in (0, 1):
        assert_agrees(advantages[group == SIX].sum() + 0.0, 0.0)
    shifted = rewards + shift * (SIX == 1)[:, None]
    assert_agrees(case.estimator(tokens._replace(token_rewards=shifted)).advantages, advantages)


@pytest.mark.parametrize("case", COMPARING, ids=identify)
@given(rewards=floats((6, 2)))
def test_a_response_without_tokens_is_in_no_baseline(case, rewards):
    """As if the row were not there at all: of two groups the first keeps two members."""
    mask, kept = torch.ones(6, 2, dtype=torch.bool), torch.tensor([0, 2, 3, 4, 5])
    mask[1] = False
    holed = rewards.clone().index_fill_(0, torch.tensor([1]), math.nan)
    left_out = case.estimator(make_tokens(holed, mask, SIX))
    alone = case.estimator(make_tokens(rewards[kept], mask[kept], SIX[kept]))
    assert_agrees(left_out.advantages[kept], alone.advantages)
    assert left_out.advantages[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("case", COMPARING, ids=identify)
def test_a_response_that_is_left_alone_has_nothing_to_be_compared_with(case):
    rewards, mask = torch.tensor([[4.0], [math.nan]]), torch.tensor([[True], [False]])
    output = case.estimator(make_tokens(rewards, mask, torch.tensor([0, 0])))
    assert output.advantages.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("case", COMPARING, ids=identify)
def test_a_group_of_one_is_refused(case):
    with pytest.raises(ConfigError, match="1 of 2 groups have one"):
        case.estimator(make_tokens(torch.zeros(3, 2), groups=torch.tensor([0, 0, 1])))


def test_statistics_of_the_batch_are_those_of_all_processes():
    rewards = torch.randn(6, 2, dtype=torch.float64)
    whole = advantage.GRPO(3, "batch")(make_tokens(rewards, groups=SIX)).advantages
    halves = [make_tokens(rewards[part], groups=SIX[part]) for part in (SIX == 0, SIX == 1)]
    moments = zip(*(half.own_moments() for half in halves), strict=True)
    together = Moments(*map(sum, moments))
    parts = [advantage.GRPO(3, "batch")(half._replace(moments=together)) for half in halves]
    assert_agrees(torch.cat([part.advantages for part in parts]), whole)


SETTINGS = [
    (kind, field.name)
    for kind in {type(case.estimator) for case in CASES}
    for field in dataclasses.fields(kind)
    if field.type.startswith("float")
]


@pytest.mark.parametrize(("kind", "name"), sorted(SETTINGS, key=str))
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_settings_out_of_range_are_refused_by_name(kind, name, value):
    with pytest.raises(ConfigError, match=rf"advantage\.{name}"):
        kind(**{name: value})


def test_an_estimator_must_say_what_it_reads():
    with pytest.raises(TypeError, match="abstract"):
        AdvantageEstimator()
