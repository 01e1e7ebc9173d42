"""Estimates of KL(policy || reference) from the tokens that the policy sampled, in nats.

All estimate the same number from `logprobs - reference_logprobs`. Source: J. Schulman,
"Approximating KL divergence" (2020).
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from lit_rlhf.objectives.precision import at_least_float32, require_same_shape

# exp(20) = 4.9e8: beyond this the estimate says only "far apart", and float32 would overflow
# at 88. The bound that verl uses.
_MAX_LOG_RATIO = 20.0


def _log_ratio(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    require_same_shape(logprobs=logprobs, reference_logprobs=reference_logprobs)
    return at_least_float32(logprobs) - at_least_float32(reference_logprobs)


def kl_k1(
    logprobs: Float[Tensor, "*tokens"], reference_logprobs: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """Estimate the KL without bias; single tokens may be negative.

    `k1 = logprobs - reference_logprobs`: the penalty inside the reward.

    Args:
        logprobs: log-probability of each sampled token under the policy.
        reference_logprobs: the same under the reference.

    Returns:
        Same shape, nats a token, float32 (float64 for float64).

    Raises:
        ValueError: if the shapes differ.
    """
    return _log_ratio(logprobs, reference_logprobs)


def kl_k2(
    logprobs: Float[Tensor, "*tokens"], reference_logprobs: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """Estimate the KL with low variance and a small bias; never negative.

    `k2 = (logprobs - reference_logprobs)^2 / 2`. Between the policy and itself before an update it
    is `approxkl` of OpenAI's lm-human-preferences (2019): how far the update has moved it.

    Args:
        logprobs: log-probability of each sampled token under the policy.
        reference_logprobs: the same under the reference.

    Returns:
        Same shape, nats a token, float32 (float64 for float64).

    Raises:
        ValueError: if the shapes differ.
    """
    return 0.5 * _log_ratio(logprobs, reference_logprobs).square()


def kl_k3(
    logprobs: Float[Tensor, "*tokens"], reference_logprobs: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """Estimate the KL without bias and with low variance; never negative.

    `k3 = exp(-k1) - 1 + k1`, with `-k1` cut at 20 so that `exp` cannot overflow (beyond it
    the value stays finite and the gradient is zero).

    Args:
        logprobs: log-probability of each sampled token under the policy.
        reference_logprobs: the same under the reference.

    Returns:
        Same shape, nats a token, float32 (float64 for float64).

    Raises:
        ValueError: if the shapes differ.
    """
    negative_k1 = (-_log_ratio(logprobs, reference_logprobs)).clamp(max=_MAX_LOG_RATIO)
    # expm1(x) >= x holds exactly; where a device rounds expm1 the wrong way, it may not.
    return (negative_k1.expm1() - negative_k1).clamp(min=0.0)


def kl_k3_straight_through(
    logprobs: Float[Tensor, "*tokens"], reference_logprobs: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """Return the value of k3 with the gradient of k2.

    k3's own gradient is that of another divergence, from the reference to the policy; k2's is that
    of the KL, for tokens that the policy itself sampled. Source: verl (`k3+`); Tang and Munos 2025,
    "On a few pitfalls in KL divergence gradient estimation for RL".

    Args:
        logprobs: log-probability of each sampled token under the policy.
        reference_logprobs: the same under the reference.

    Returns:
        Same shape, nats a token, float32 (float64 for float64).

    Raises:
        ValueError: if the shapes differ.
    """
    k2, k3 = kl_k2(logprobs, reference_logprobs), kl_k3(logprobs, reference_logprobs)
    return k3.detach() + (k2 - k2.detach())


def kl_per_response(
    token_kl: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Sum the KL over the tokens of each response.

    This sum, in nats a response and averaged over responses and ranks, is what the whole
    package calls `kl`; targets and horizons of the controllers are in the same unit.

    Args:
        token_kl: nats a token, by any of the estimators.
        response_mask: True at response tokens.

    Returns:
        Nats a response, float32 (float64 for float64); 0 for a row without tokens.

    Raises:
        ValueError: if the shapes differ.
    """
    require_same_shape(token_kl=token_kl, response_mask=response_mask)
    return at_least_float32(token_kl).masked_fill(~response_mask, 0.0).sum(dim=-1)
