from lit_rlhf.objectives import SPPOHard
from tests.objectives.agreement import assert_agrees
from tests.objectives.preference.cases import losses_of


def test_one_pair_by_hand():
    # targets are 1 and -1
    assert_agrees(losses_of(SPPOHard(0.5)), [0.0 + 1.0])
    assert_agrees(losses_of(SPPOHard(0.25)), [1.0 + 0.0])
