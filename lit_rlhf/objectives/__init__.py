"""The formulas of the package, as pure functions of tensors.

No module, trainer, configuration file, rank or logging is known here. Results are element
by element or row by row; the caller reduces, and says over which tokens and ranks.
"""

from lit_rlhf.objectives.advantages import GAE, AdvantageEstimator, Advantages
from lit_rlhf.objectives.bradley_terry import bradley_terry_loss, centering_penalty
from lit_rlhf.objectives.group_advantages import GRPO, RLOO
from lit_rlhf.objectives.importance import TruncatedWeights, truncated_importance_weights
from lit_rlhf.objectives.kl import kl_k1, kl_k2, kl_k3, kl_per_response
from lit_rlhf.objectives.kl_control import AdaptiveKL, FixedKL, KLController, KLState
from lit_rlhf.objectives.language_modeling import response_nll
from lit_rlhf.objectives.logprobs import (
    VocabularyScores,
    chunked_logprobs,
)
from lit_rlhf.objectives.masking import Moments, masked_moments, whiten
from lit_rlhf.objectives.policy_gradient import (
    ClippedLoss,
    clipped_policy_loss,
    clipped_value_loss,
)
from lit_rlhf.objectives.preference import (
    AOT,
    BCO,
    CPO,
    DPO,
    EXO,
    IPO,
    KTO,
    NCA,
    ORPO,
    AlphaDivergence,
    APODown,
    APOZero,
    ChosenNLL,
    DiscoPOP,
    Divergence,
    ForwardKL,
    Hinge,
    JensenShannon,
    PreferenceLoss,
    PreferenceOutput,
    PreferencePairs,
    ReverseKL,
    RobustDPO,
    SimPO,
    SPPOHard,
    WeightedSum,
)
from lit_rlhf.objectives.reward import (
    BradleyTerryLoss,
    PlackettLuceLoss,
    RatingRegression,
    RewardLoss,
    ScoredResponses,
    StepLoss,
    WeightedLosses,
)
from lit_rlhf.objectives.shaping import MissingEOS, token_rewards

__all__ = [
    "AOT",
    "BCO",
    "CPO",
    "DPO",
    "EXO",
    "GAE",
    "GRPO",
    "IPO",
    "KTO",
    "NCA",
    "ORPO",
    "RLOO",
    "APODown",
    "APOZero",
    "AdaptiveKL",
    "AdvantageEstimator",
    "Advantages",
    "AlphaDivergence",
    "BradleyTerryLoss",
    "ChosenNLL",
    "ClippedLoss",
    "DiscoPOP",
    "Divergence",
    "FixedKL",
    "ForwardKL",
    "Hinge",
    "JensenShannon",
    "KLController",
    "KLState",
    "MissingEOS",
    "Moments",
    "PlackettLuceLoss",
    "PreferenceLoss",
    "PreferenceOutput",
    "PreferencePairs",
    "RatingRegression",
    "ReverseKL",
    "RewardLoss",
    "RobustDPO",
    "SPPOHard",
    "ScoredResponses",
    "SimPO",
    "StepLoss",
    "TruncatedWeights",
    "VocabularyScores",
    "WeightedLosses",
    "WeightedSum",
    "bradley_terry_loss",
    "centering_penalty",
    "chunked_logprobs",
    "clipped_policy_loss",
    "clipped_value_loss",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_per_response",
    "masked_moments",
    "response_nll",
    "token_rewards",
    "truncated_importance_weights",
    "whiten",
]
