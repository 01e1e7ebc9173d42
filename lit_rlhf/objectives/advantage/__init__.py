"""Advantage estimators: one file each, all behind `AdvantageEstimator`."""

from lit_rlhf.objectives.advantage.estimator import AdvantageEstimator, Advantages, RewardedTokens
from lit_rlhf.objectives.advantage.gae import GAE
from lit_rlhf.objectives.advantage.grpo import GRPO
from lit_rlhf.objectives.advantage.length_adaptive import LengthAdaptiveGAE
from lit_rlhf.objectives.advantage.reinforce import ReinforcePlusPlus, ReinforcePlusPlusBaseline
from lit_rlhf.objectives.advantage.remax import ReMax
from lit_rlhf.objectives.advantage.rloo import RLOO

__all__ = [
    "GAE",
    "GRPO",
    "RLOO",
    "AdvantageEstimator",
    "Advantages",
    "LengthAdaptiveGAE",
    "ReMax",
    "ReinforcePlusPlus",
    "ReinforcePlusPlusBaseline",
    "RewardedTokens",
]
