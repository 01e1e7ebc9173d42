import torch

from lit_rlhf.objectives import KTO
from tests.objectives.agreement import assert_agrees
from tests.objectives.preference.cases import PAIR, make_pairs, sigmoid


def kto(point, probability):
    loss = KTO(0.1, 1.5, 0.5)
    pairs = make_pairs(PAIR, loss, probability=torch.tensor([probability]))
    return loss(pairs._replace(reference_point=torch.tensor(point, dtype=torch.float64))).losses


def test_a_good_and_a_bad_response_by_hand():
    assert_agrees(kto(3.0, 1.0), [1.5 * sigmoid(0.1 * (3 - 1))])
    assert_agrees(kto(3.0, 0.0), [0.5 * sigmoid(0.1 * (1 - 3))])


def test_a_reference_point_below_zero_is_zero():
    assert torch.equal(kto(-3.0, 1.0), kto(0.0, 1.0))


def test_it_reads_labels():
    assert KTO().is_unpaired
