import math

import pytest
import torch

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import OverlongPenalty
from tests.objectives.agreement import assert_agrees, both_precisions, normal
from tests.oracles.shaping import soft_overlong


@both_precisions
@pytest.mark.parametrize(("buffer", "weight"), [(4, 1.0), (1, 2.0), (10, 0.5)])
def test_scores_agree_with_the_paper(buffer, weight, dtype):
    scores, lengths = normal(11, dtype=dtype), torch.arange(11)
    golden = [
        score + weight * soft_overlong(length, 10, buffer)
        for score, length in zip(scores.tolist(), lengths.tolist(), strict=True)
    ]
    assert_agrees(OverlongPenalty(buffer, weight).apply(scores, lengths, 10), golden, dtype)


def test_by_hand():
    scores = OverlongPenalty(4).apply(torch.zeros(4), torch.tensor([6, 7, 9, 10]), 10)
    assert scores.tolist() == [0.0, -0.25, -0.75, -1.0]


def test_a_score_that_is_left_out_stays_so():
    score = OverlongPenalty(4).apply(torch.tensor([math.nan]), torch.tensor([10]), 10)
    assert score.isnan().all()


def test_a_buffer_beyond_the_limit_is_refused():
    OverlongPenalty(10).check(10)
    with pytest.raises(ConfigError, match=r"overlong_penalty\.buffer is 11.*max_new_tokens 10"):
        OverlongPenalty(11).check(10)


@pytest.mark.parametrize(("name", "value"), [("buffer", 0), ("weight", 0.0), ("weight", math.nan)])
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"overlong_penalty\.{name}"):
        OverlongPenalty(**{"buffer": 1, name: value})
