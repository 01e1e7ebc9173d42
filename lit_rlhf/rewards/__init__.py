"""Where rewards come from: learned reward models, one or several, or any Python function."""

from lit_rlhf.rewards.asking import ask
from lit_rlhf.rewards.ensemble import EnsembleReward
from lit_rlhf.rewards.function import FunctionReward, as_source
from lit_rlhf.rewards.learned import LearnedReward
from lit_rlhf.rewards.source import RewardSource, origins_of

__all__ = [
    "EnsembleReward",
    "FunctionReward",
    "LearnedReward",
    "RewardSource",
    "as_source",
    "ask",
    "origins_of",
]
