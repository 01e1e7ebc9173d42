from lit_rlhf.objectives import Hinge
from tests.objectives.agreement import assert_agrees
from tests.objectives.preference.cases import losses_of


def test_one_pair_by_hand_and_no_pull_beyond_the_margin():
    assert_agrees(losses_of(Hinge(0.1)), [0.7])
    assert losses_of(Hinge(0.5)).item() == 0.0
