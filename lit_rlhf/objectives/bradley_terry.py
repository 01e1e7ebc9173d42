"""Losses of a reward model that learns from comparisons."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_rlhf.objectives.precision import at_least_float32, require_same_shape


def bradley_terry_loss(
    chosen_scores: Float[Tensor, " M"],
    rejected_scores: Float[Tensor, " M"],
    probability: Float[Tensor, " M"] | None = None,
    margin: Float[Tensor, " M"] | Float[Tensor, ""] | None = None,
) -> Float[Tensor, " M"]:
    """Compute the negative log-likelihood of averaged judgments under Bradley-Terry.

    With `d = chosen_scores - rejected_scores - margin`,
    `loss = -probability * log sigmoid(d) - (1 - probability) * log sigmoid(-d)`.
    Source: Bradley and Terry 1952; the margin Touvron et al. 2023 (Llama 2), equation 2.

    Args:
        chosen_scores: of the response named first in each pair.
        rejected_scores: of the other.
        probability: share of judgments for the first, in [0, 1]; None for certainty.
        margin: by how much the first is to score more; None for 0.

    Returns:
        One loss a pair, float32 (float64 for float64), to be averaged by the pairs' weights.

    Raises:
        ValueError: if the shapes differ.
    """
    require_same_shape(
        chosen_scores=chosen_scores, rejected_scores=rejected_scores, probability=probability
    )
    difference = at_least_float32(chosen_scores) - at_least_float32(rejected_scores)
    if margin is not None:
        difference = difference - margin
    # logsigmoid, not log(1 + exp(-x)), which overflows float32 at x = -88.
    if probability is None:
        return -logsigmoid(difference)
    return -probability * logsigmoid(difference) - (1.0 - probability) * logsigmoid(-difference)


def centering_penalty(
    chosen_scores: Float[Tensor, " M"], rejected_scores: Float[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """Compute the penalty that keeps scores around zero.

    `penalty = (chosen_scores + rejected_scores)^2`, to be added with a small coefficient
    (0.01): Bradley-Terry fixes differences only, and scores may drift together. Source:
    Eisenstein et al. 2023.

    Args:
        chosen_scores: of the response named first in each pair.
        rejected_scores: of the other.

    Returns:
        One penalty a pair, float32 (float64 for float64).

    Raises:
        ValueError: if the shapes differ.
    """
    require_same_shape(chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    return (at_least_float32(chosen_scores) + at_least_float32(rejected_scores)).square()
