import pytest
import torch

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives import BradleyTerryLoss, PlackettLuceLoss
from tests.objectives.agreement import assert_agrees, normal
from tests.objectives.reward.cases import NUM_RESPONSES, make_scored


def only(scored, prompt):
    """Keep the pairs of one prompt."""
    kept = scored.group[scored.chosen] == prompt
    fields = ("chosen", "rejected", "probability", "weight")
    return scored._replace(**{name: getattr(scored, name)[kept] for name in fields})


@pytest.mark.parametrize("probability", [1.0, 0.5])
def test_of_two_responses_it_is_bradley_terry(probability):
    scored = only(make_scored(normal(NUM_RESPONSES)), 0)
    scored = scored._replace(probability=torch.full((1,), probability, dtype=torch.float64))
    assert_agrees(PlackettLuceLoss()(scored).losses, BradleyTerryLoss()(scored).losses)


def test_only_differences_of_scores_count():
    scores = normal(NUM_RESPONSES)
    losses = PlackettLuceLoss()(make_scored(scores)).losses
    assert_agrees(PlackettLuceLoss()(make_scored(scores + 7)).losses, losses)


def test_shares_of_judges_are_ranked_by_their_sums():
    scored = only(make_scored(normal(NUM_RESPONSES)), 1)
    sure = PlackettLuceLoss()(scored).losses
    unsure = scored._replace(probability=torch.full_like(scored.probability, 0.8))
    assert torch.equal(PlackettLuceLoss()(unsure).losses, sure)


def test_what_is_no_whole_ranking_is_refused():
    scored = only(make_scored(normal(NUM_RESPONSES)), 3)
    fields = ("chosen", "rejected", "probability", "weight")
    partial = scored._replace(**{name: getattr(scored, name)[1:] for name in fields})
    with pytest.raises(ConfigError, match="of 5 responses to a prompt only 9 of 10 pairs"):
        PlackettLuceLoss()(partial)


def test_many_ties_are_refused():
    chosen, rejected = torch.combinations(torch.arange(9)).T
    scored = make_scored(normal(NUM_RESPONSES))._replace(
        scores=normal(9),
        group=torch.zeros(9, dtype=torch.int64),
        chosen=chosen,
        rejected=rejected,
        probability=torch.full((36,), 0.5, dtype=torch.float64),
        weight=torch.ones(36, dtype=torch.float64),
    )
    with pytest.raises(ConfigError, match="9 responses to a prompt are tied"):
        PlackettLuceLoss()(scored)
