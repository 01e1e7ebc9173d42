import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import MissingEOS, kl_per_response, token_rewards
from tests.objectives.agreement import (
    SHAPE_ERRORS,
    assert_agrees,
    both_precisions,
    floats,
    masks,
    normal,
    random_mask,
)
from tests.oracles import shaping as oracle

SCORES = torch.tensor([1.0, 2.0, 3.0])
FINISHED = torch.tensor([True, False, True])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (MissingEOS(), [1.0, -1.0, 3.0]),
        (MissingEOS("replace", -5.0), [1.0, -5.0, 3.0]),
        (MissingEOS("subtract", 0.5), [1.0, 1.5, 3.0]),
        (MissingEOS("keep"), [1.0, 2.0, 3.0]),
    ],
)
def test_only_unfinished_responses_lose_their_score(rule, expected):
    assert rule.apply(SCORES, FINISHED).tolist() == expected
    assert SCORES.tolist() == [1.0, 2.0, 3.0]


def test_unfinished_responses_can_be_left_out():
    scores = MissingEOS("filter").apply(SCORES, FINISHED)
    assert scores[FINISHED].tolist() == [1.0, 3.0]
    assert scores[~FINISHED].isnan().all()


@pytest.mark.parametrize("action", ["keep", "filter"])
def test_a_value_without_effect_is_refused(action):
    with pytest.raises(ConfigError, match=r"missing_eos\.value 2.0 has no effect"):
        MissingEOS(action, 2.0)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_penalty_to_subtract_must_be_positive(value):
    with pytest.raises(ConfigError, match=r"missing_eos\.value"):
        MissingEOS("subtract", value)


def test_an_unknown_action_is_refused_with_the_choices():
    # The check of annotations, on while testing, comes before our own.
    with pytest.raises((ConfigError, TypeError)):
        MissingEOS("drop")


def test_finished_marks_of_another_shape_are_refused():
    with pytest.raises(SHAPE_ERRORS):
        MissingEOS().apply(SCORES, torch.ones(3, 1, dtype=torch.bool))


@both_precisions
@pytest.mark.parametrize("shape", [(4, 6), (2, 1), (3, 0)])
def test_token_rewards_agree_with_the_definition(shape, dtype):
    scores, token_kl = normal(shape[0], dtype=dtype), normal(*shape, dtype=dtype)
    mask = random_mask(*shape)
    golden = oracle.token_rewards(scores.numpy(), token_kl.numpy(), mask.numpy(), 0.3)
    assert_agrees(token_rewards(scores, token_kl, mask, 0.3), golden, dtype)


def test_the_score_stands_on_the_last_token_and_the_penalty_everywhere():
    token_kl = torch.tensor([[0.5, 1.0, -2.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    rewards = token_rewards(torch.tensor([10.0]), token_kl, mask, 0.1)
    assert_agrees(rewards, [[-0.05, -0.1, 10.2, 0.0]])


def test_a_row_without_tokens_gets_nothing():
    rewards = token_rewards(
        torch.tensor([10.0]), torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool), 0.1
    )
    assert rewards.tolist() == [[0.0, 0.0, 0.0]]


def test_nan_at_padding_does_not_spread():
    rewards = token_rewards(
        torch.tensor([1.0]), torch.tensor([[0.0, math.nan]]), torch.tensor([[True, False]]), 0.1
    )
    assert rewards.tolist() == [[1.0, 0.0]]


@given(floats((4,)), floats((4, 3)), masks((4, 3)), st.floats(0.0, 2.0))
def test_rewards_of_a_response_sum_to_score_minus_kl(scores, token_kl, mask, kl_coef):
    total = token_rewards(scores, token_kl, mask, kl_coef).sum(dim=1)
    has_tokens = mask.any(dim=1)
    expected = (scores - kl_coef * kl_per_response(token_kl, mask)) * has_tokens
    assert_agrees(total, expected)


@given(floats((4,)), floats((4, 3)), masks((4, 3)))
def test_padding_changes_nothing_and_rows_stay_apart(scores, token_kl, mask):
    whole = token_rewards(scores, token_kl, mask, 0.5)
    padded = token_rewards(
        scores,
        torch.nn.functional.pad(token_kl, (0, 2), value=3.0),
        torch.nn.functional.pad(mask, (0, 2), value=False),
        0.5,
    )
    assert torch.equal(padded, torch.nn.functional.pad(whole, (0, 2)))
    assert torch.equal(
        token_rewards(scores.flip(0), token_kl.flip(0), mask.flip(0), 0.5), whole.flip(0)
    )


def test_rewards_depend_on_score_and_kl_as_they_should():
    inputs = normal(3).requires_grad_(), normal(3, 4).requires_grad_()
    mask = random_mask(3, 4)
    assert torch.autograd.gradcheck(lambda s, kl: token_rewards(s, kl, mask, 0.3), inputs)


def test_bfloat16_gives_float32():
    rewards = token_rewards(
        torch.tensor([2.5]).bfloat16(),
        torch.tensor([[0.5, 0.25]]).bfloat16(),
        torch.ones(1, 2, dtype=torch.bool),
        0.1,
    )
    assert_agrees(rewards, [[-0.05, 2.475]], torch.float32)


@pytest.mark.parametrize("num_scores", [1, 3])
def test_scores_of_other_rows_are_refused(num_scores):
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(SHAPE_ERRORS):
        token_rewards(torch.ones(num_scores), torch.ones(2, 3), mask, 0.1)
