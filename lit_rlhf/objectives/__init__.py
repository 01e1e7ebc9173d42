"""The formulas of the package, as pure functions of tensors.

No module, trainer, configuration file, rank or logging is known here. Results are element
by element or row by row; the caller reduces, and says over which tokens and ranks. Each of the four
families (`advantage`, `policy`, `preference`, `reward`) lists its own names.
"""

from lit_rlhf.objectives import advantage, policy, preference, reward
from lit_rlhf.objectives.advantage import *
from lit_rlhf.objectives.bradley_terry import bradley_terry_loss, centering_penalty
from lit_rlhf.objectives.importance import TruncatedWeights, truncated_importance_weights
from lit_rlhf.objectives.kl import kl_k1, kl_k2, kl_k3, kl_k3_straight_through, kl_per_response
from lit_rlhf.objectives.kl_control import AdaptiveKL, FixedKL, KLController, KLState
from lit_rlhf.objectives.kl_penalty import KLPenalty
from lit_rlhf.objectives.language_modeling import response_nll
from lit_rlhf.objectives.logprobs import VocabularyScores, chunked_logprobs
from lit_rlhf.objectives.masking import Moments, masked_moments, whiten
from lit_rlhf.objectives.overlong import OverlongPenalty
from lit_rlhf.objectives.policy import *
from lit_rlhf.objectives.preference import *
from lit_rlhf.objectives.reward import *
from lit_rlhf.objectives.shaping import MissingEOS, token_rewards
from lit_rlhf.objectives.value import clipped_value_loss

__all__ = [
    "AdaptiveKL",
    "FixedKL",
    "KLController",
    "KLPenalty",
    "KLState",
    "MissingEOS",
    "Moments",
    "OverlongPenalty",
    "TruncatedWeights",
    "VocabularyScores",
    "bradley_terry_loss",
    "centering_penalty",
    "chunked_logprobs",
    "clipped_value_loss",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_k3_straight_through",
    "kl_per_response",
    "masked_moments",
    "response_nll",
    "token_rewards",
    "truncated_importance_weights",
    "whiten",
]
__all__ += advantage.__all__ + policy.__all__ + preference.__all__ + reward.__all__
