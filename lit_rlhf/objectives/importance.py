"""The correction for samples that another engine drew: truncated importance weights."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from lit_rlhf.objectives.precision import at_least_float32, require_same_shape
from lit_rlhf.ranges import require

# exp(20) = 4.9e8 lies above any cap, and exp() stays finite. The bound of verl.
_MAX_LOG_RATIO = 20.0


class TruncatedWeights(NamedTuple):
    """A weight for each token, and where the cap took effect.

    Attributes:
        weights: float32 (float64 for float64), constants in (0, cap].
        is_truncated: bool, True where the ratio was above the cap.
    """

    weights: Tensor
    is_truncated: Tensor


def truncated_importance_weights(
    old_logprobs: Float[Tensor, "*tokens"],
    sampler_logprobs: Float[Tensor, "*tokens"],
    *,
    cap: float = 2.0,
) -> TruncatedWeights:
    """Weigh each token by how much likelier the trainer finds it than the engine that drew it.

    `weights = min(exp(old_logprobs - sampler_logprobs), cap)`, the exponent cut to [-20, 20],
    without gradient; the policy loss of each token is multiplied by its weight. In expectation over
    the sampler's tokens a weight below the cap turns the sampler's distribution into the
    trainer's; the cap bounds the variance at the price of a bias. Source: Yao et al. 2025, "Your
    efficient RL framework secretly brings you off-policy RL training", truncated importance
    sampling at the level of tokens; as verl (`tis_imp_ratio_cap`) and TRL
    (`vllm_importance_sampling_cap`), where the cap is 2 and 3.

    Args:
        old_logprobs: under the policy before the update, by the training forward.
        sampler_logprobs: with which the tokens were drawn, by the engine that drew them.
        cap: largest weight, at least 1: tokens on which both agree keep their weight.

    Returns:
        Weights and marks of the same shape. Values at padding are to be masked out.

    Raises:
        ConfigError: if the cap is below 1.
        ValueError: if the shapes differ.
    """
    require_same_shape(old_logprobs=old_logprobs, sampler_logprobs=sampler_logprobs)
    require("the cap of importance weights", cap, least=1)
    log_ratio = at_least_float32(old_logprobs) - at_least_float32(sampler_logprobs)
    ratio = log_ratio.detach().clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
    return TruncatedWeights(ratio.clamp(max=cap), ratio > cap)
