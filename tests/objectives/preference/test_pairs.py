import torch

from lit_rlhf.batches import ComparisonBatch, TokenRows
from lit_rlhf.objectives import DPO, PreferencePairs, SimPO
from tests.objectives.agreement import assert_agrees


def batch():
    mask = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    return ComparisonBatch(
        rows=TokenRows(torch.zeros(3, 4, dtype=torch.int64), torch.tensor([4, 2, 4]), mask),
        chosen=torch.tensor([0, 2]),
        rejected=torch.tensor([1, 0]),
        probability=torch.tensor([1.0, 0.5]),
        weight=torch.tensor([1.0, 2.0]),
        group=torch.zeros(3, dtype=torch.int64),
        ratings=torch.full((3,), torch.nan),
    )


def test_pairs_are_read_from_the_rows_of_a_batch():
    policy, reference = torch.tensor([-3.0, -1.0, -2.0]), torch.tensor([-6.0, -1.5, -2.0])
    pairs = PreferencePairs.of(batch(), policy, reference)
    assert pairs.policy_chosen.tolist() == [-3.0, -2.0]
    assert pairs.reference_rejected.tolist() == [-1.5, -6.0]
    assert pairs.chosen_lengths.tolist() == [3, 2]
    assert pairs.rejected_lengths.tolist() == [1, 3]
    chosen, rejected = pairs.log_ratios
    assert_agrees(chosen, [3.0, 0.0])
    assert_agrees(rejected, [0.5, 3.0])


def test_a_loss_without_a_reference_reads_none():
    pairs = PreferencePairs.of(batch(), torch.tensor([-3.0, -1.0, -2.0]), None)
    assert pairs.reference_chosen is None
    assert torch.isfinite(SimPO()(pairs).losses).all()
    assert DPO().requires_reference
