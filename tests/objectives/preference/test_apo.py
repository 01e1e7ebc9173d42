from lit_rlhf.objectives import APODown, APOZero
from tests.objectives.agreement import assert_agrees
from tests.objectives.preference.cases import losses_of, sigmoid


def test_one_pair_by_hand():
    assert_agrees(losses_of(APOZero(0.1)), [1 - sigmoid(0.1) + sigmoid(-0.2)])
    assert_agrees(losses_of(APODown(0.1)), [sigmoid(0.1) + 1 - sigmoid(0.3)])
