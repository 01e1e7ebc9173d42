import math

import pytest
import torch

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import RatingRegression
from tests.objectives.agreement import assert_agrees, normal
from tests.objectives.reward.cases import NUM_RESPONSES, make_scored


def test_it_is_zero_where_scores_are_standardised_ratings():
    scored = make_scored(normal(NUM_RESPONSES))
    scored = scored._replace(scores=(scored.ratings.nan_to_num() - 3) / 2)
    losses = RatingRegression(3.0, 2.0)(scored).losses
    assert_agrees(losses, [0.0] * (NUM_RESPONSES - 1))  # one response has no rating


def test_rows_without_ratings_are_refused():
    scored = make_scored(normal(NUM_RESPONSES))
    scored = scored._replace(ratings=torch.full_like(scored.ratings, math.nan))
    with pytest.raises(ConfigError, match="RatingRegression needs rows with 'ratings'"):
        RatingRegression()(scored)
