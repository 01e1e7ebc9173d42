import pytest
import torch
from torch import distributed

from lit_rlhf.modules.rewarded_policy import score_in_parts
from tests.models.examples import random_rows
from tests.support.two_processes import run_in_two_processes

ROWS = random_rows([3, 8, 1, 2], [4, 9, 2, 2])


def numbers(rows):
    """Return something of each row: its first token, and its tokens that count."""
    return torch.stack([rows.input_ids[:, 0], rows.response_mask.sum(1)], 1)


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [((None, None), [4]), ((3, None), [3, 1]), ((None, 17), [1, 1, 2]), ((1, 99), [1, 1, 1, 1])],
)
def test_rows_are_scored_in_parts_and_come_back_in_order(limits, sizes):
    seen = []

    def compute(rows):
        seen.append(len(rows.lengths))
        return numbers(rows)

    scores = score_in_parts(ROWS, compute, max_rows=limits[0], max_tokens=limits[1])
    assert torch.equal(scores, numbers(ROWS))
    assert seen == sizes


def score_on_a_process():
    counts = []

    def compute(rows):
        counts.append(int(rows.response_mask.sum()))
        return numbers(rows)

    rows = ROWS.select(torch.arange(4 - 3 * distributed.get_rank()))
    scores = score_in_parts(rows, compute, max_rows=2, max_tokens=None)
    return counts, torch.equal(scores, numbers(rows))


def test_all_processes_compute_equally_often_and_stand_ins_count_nothing():
    assert run_in_two_processes(score_on_a_process) == [([13, 4], True), ([4, 0], True)]
