"""Losses of a reward model, behind one protocol: over pairs, whole rankings, or ratings."""

from lit_rlhf.objectives.reward.pairwise import BradleyTerryLoss
from lit_rlhf.objectives.reward.plackett_luce import PlackettLuceLoss
from lit_rlhf.objectives.reward.rating import RatingRegression
from lit_rlhf.objectives.reward.scored import RewardLoss, ScoredResponses, WeightedLosses
from lit_rlhf.objectives.reward.step import StepLoss

__all__ = [
    "BradleyTerryLoss",
    "PlackettLuceLoss",
    "RatingRegression",
    "RewardLoss",
    "ScoredResponses",
    "StepLoss",
    "WeightedLosses",
]
