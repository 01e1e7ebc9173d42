import pytest
import torch

from lit_rlhf.objectives import IPO
from tests.objectives.agreement import assert_agrees
from tests.objectives.preference.cases import losses_of, make_pairs

LENGTHS = torch.tensor([[2], [4]])


def test_one_pair_by_hand_a_token_and_summed():
    assert_agrees(losses_of(IPO(0.25), lengths=LENGTHS), [(1 / 2 + 2 / 4 - 2) ** 2])
    assert_agrees(losses_of(IPO(0.25, per_token=False), lengths=LENGTHS), [(1 + 2 - 2) ** 2])


def test_a_soft_label_asks_for_a_smaller_margin():
    """The minimum over the difference is at (2 p - 1) / (2 beta)."""
    loss = IPO(beta=0.5, per_token=False)
    difference = torch.linspace(-1, 1, 201, dtype=torch.float64)
    logprobs = torch.zeros(4, 201, dtype=torch.float64)
    logprobs[0] = difference
    losses = loss(make_pairs(logprobs, loss, probability=torch.full((201,), 0.7))).losses
    assert difference[losses.argmin()].item() == pytest.approx(0.4)
