"""Policy losses: one file each, all behind `PolicyLoss`; and how their tokens are averaged."""

from lit_rlhf.objectives.policy.aggregation import (
    ConstantLength,
    LossAggregation,
    SequenceMean,
    TokenMean,
)
from lit_rlhf.objectives.policy.cispo import CISPO
from lit_rlhf.objectives.policy.gspo import GSPO
from lit_rlhf.objectives.policy.loss import ClippedLoss, PolicyLoss, PolicyTokens
from lit_rlhf.objectives.policy.ppo_clip import PPOClip

__all__ = [
    "CISPO",
    "GSPO",
    "ClippedLoss",
    "ConstantLength",
    "LossAggregation",
    "PPOClip",
    "PolicyLoss",
    "PolicyTokens",
    "SequenceMean",
    "TokenMean",
]
