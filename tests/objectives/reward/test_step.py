import math

import pytest
import torch

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import StepLoss
from tests.objectives.agreement import assert_agrees
from tests.objectives.reward.cases import make_steps


def test_a_right_and_a_wrong_step_by_hand():
    scored = make_steps(torch.tensor([2.0, 2.0], dtype=torch.float64))  # labels 0 and 1
    expected = [math.log(1 + math.exp(2)), math.log(1 + math.exp(-2))]
    assert_agrees(StepLoss()(scored).losses, expected)


def test_scores_and_labels_must_be_as_many():
    scored = make_steps(torch.zeros(4))
    with pytest.raises(ConfigError, match="a batch has 3 steps and 4 labels"):
        StepLoss()(scored._replace(scores=torch.zeros(3)))
