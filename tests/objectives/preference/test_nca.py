import math

from lit_rlhf.objectives import NCA
from tests.objectives.agreement import assert_agrees
from tests.objectives.preference.cases import losses_of, sigmoid


def test_one_pair_by_hand():
    expected = -math.log(sigmoid(0.1)) - (math.log(sigmoid(-0.1)) + math.log(sigmoid(0.2))) / 2
    assert_agrees(losses_of(NCA(0.1)), [expected])
