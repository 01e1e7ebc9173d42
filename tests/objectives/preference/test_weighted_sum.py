import pytest
import torch

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import BCO, DPO, KTO, ChosenNLL, SimPO, WeightedSum
from tests.objectives.preference.cases import make_pairs, random_logprobs


def test_rewards_are_those_of_the_first():
    loss = WeightedSum((DPO(0.3), BCO()), (0.5, 2.0))
    pairs = make_pairs(random_logprobs(3), loss)
    assert torch.equal(loss(pairs).chosen_rewards, DPO(0.3)(pairs).chosen_rewards)


def test_it_reads_what_its_losses_read():
    assert not WeightedSum((SimPO(), ChosenNLL()), (1.0, 1.0)).requires_reference
    assert WeightedSum((SimPO(), DPO()), (1.0, 1.0)).requires_reference
    assert WeightedSum((SimPO(), DPO()), (1.0, 1.0)).takes_soft_labels
    assert not WeightedSum((DPO(), BCO()), (1.0, 1.0)).takes_soft_labels


def test_losses_that_do_not_go_together_are_refused():
    with pytest.raises(ConfigError, match="DPO, KTO: some read pairs"):
        WeightedSum((DPO(), KTO()), (1.0, 1.0))
    with pytest.raises(ConfigError, match="2 losses and 3 weights"):
        WeightedSum((DPO(), BCO()), (1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="two losses or more"):
        WeightedSum((DPO(),), (1.0,))
    with pytest.raises(ConfigError, match=r"weights\[1\]"):
        WeightedSum((DPO(), BCO()), (1.0, 0.0))
