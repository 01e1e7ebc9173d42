"""Where rewards come from: learned reward models, one or several, or any Python function."""

from lit_rlhf.rewards.ensemble import EnsembleReward
from lit_rlhf.rewards.function import FunctionReward
from lit_rlhf.rewards.learned import LearnedReward
from lit_rlhf.rewards.source import RewardSource, origins_of

__all__ = ["EnsembleReward", "FunctionReward", "LearnedReward", "RewardSource", "origins_of"]
