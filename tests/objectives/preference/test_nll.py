import torch

from lit_rlhf.objectives import ChosenNLL
from tests.objectives.agreement import assert_agrees
from tests.objectives.preference.cases import losses_of


def test_nats_a_token_of_the_better_response():
    lengths = torch.tensor([[2], [4]])
    assert_agrees(losses_of(ChosenNLL(), lengths=lengths), [3 / 2])
    label = torch.tensor([0.5], dtype=torch.float64)
    assert_agrees(losses_of(ChosenNLL(), lengths=lengths, probability=label), [1.375])
