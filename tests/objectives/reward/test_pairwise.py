import torch

from lit_rlhf.objectives import BradleyTerryLoss
from tests.objectives.agreement import assert_agrees, normal
from tests.objectives.reward.cases import NUM_RESPONSES, PLACES, make_scored


def test_each_prompt_counts_once():
    """1 / C(K, 2) for each pair, so that the pairs of a prompt have weight 1 together."""
    scored = make_scored(normal(NUM_RESPONSES))
    scored = scored._replace(weight=torch.ones_like(scored.weight))
    weight = BradleyTerryLoss(per_prompt=True)(scored).weight
    prompt = scored.group[scored.chosen]
    assert_agrees(torch.zeros(len(PLACES)).double().index_add(0, prompt, weight), [1.0] * 4)
