import math

import torch

from lit_rlhf.batches import ComparisonBatch, TokenRows
from lit_rlhf.objectives import ScoredResponses


def test_scores_stand_beside_what_people_said_in_float32():
    rows = TokenRows(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2), torch.zeros(2, 1))
    pair = (torch.tensor([1]), torch.tensor([0]), torch.tensor([0.75]), torch.tensor([2.0]))
    batch = ComparisonBatch(rows, *pair, torch.zeros(2).long(), torch.tensor([4.0, math.nan]))
    scored = ScoredResponses.of(batch, torch.tensor([0.5, 1.5]).bfloat16())
    assert scored.scores.dtype == torch.float32
    assert scored.scores[scored.chosen].tolist() == [1.5]
    assert scored.ratings.tolist()[0] == 4.0
