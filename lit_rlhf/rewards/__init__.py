"""Where rewards come from: reward models, functions, servers, rules, and several of these."""

from lit_rlhf.rewards.asking import ask
from lit_rlhf.rewards.checked_answers import JSONSchema, MathsEqual
from lit_rlhf.rewards.endpoint import EndpointReward
from lit_rlhf.rewards.ensemble import EnsembleReward
from lit_rlhf.rewards.function import FunctionReward, as_source
from lit_rlhf.rewards.learned import LearnedReward
from lit_rlhf.rewards.mixture import RewardMixture
from lit_rlhf.rewards.source import RewardSource, origins_of
from lit_rlhf.rewards.verifiers import ExactMatch, LengthWithin, RegexMatch, Verifier

__all__ = [
    "EndpointReward",
    "EnsembleReward",
    "ExactMatch",
    "FunctionReward",
    "JSONSchema",
    "LearnedReward",
    "LengthWithin",
    "MathsEqual",
    "RegexMatch",
    "RewardMixture",
    "RewardSource",
    "Verifier",
    "as_source",
    "ask",
    "origins_of",
]
