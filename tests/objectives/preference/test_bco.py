import math

from lit_rlhf.objectives import BCO
from tests.objectives.agreement import assert_agrees
from tests.objectives.preference.cases import losses_of, sigmoid


def test_one_pair_by_hand():
    assert_agrees(losses_of(BCO(0.1)), [-math.log(sigmoid(0.1)) - math.log(sigmoid(0.2))])
