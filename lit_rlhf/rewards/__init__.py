"""Where rewards come from: a learned reward model, or any Python function."""

from lit_rlhf.rewards.function import FunctionReward
from lit_rlhf.rewards.learned import LearnedReward
from lit_rlhf.rewards.source import RewardSource

__all__ = ["FunctionReward", "LearnedReward", "RewardSource"]
