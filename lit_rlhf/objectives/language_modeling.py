"""How well a model predicts given responses."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from lit_rlhf.objectives.precision import at_least_float32, require_same_shape


def response_nll(
    logprobs: Float[Tensor, "B L"], response_mask: Bool[Tensor, "B L"]
) -> Float[Tensor, " B"]:
    """Sum the negative log-likelihood over the response tokens of each row.

    `nll[b] = -sum over t of response_mask[b, t] * logprobs[b, t]`. The loss of supervised
    fine-tuning is its sum over the batch, divided by the response tokens of all ranks.

    Args:
        logprobs: log-probability of each token.
        response_mask: True at the tokens that count.

    Returns:
        Nats a row, float32 (float64 for float64); 0 for a row in which nothing counts.

    Raises:
        ValueError: if the shapes differ.
    """
    require_same_shape(logprobs=logprobs, response_mask=response_mask)
    return -at_least_float32(logprobs).masked_fill(~response_mask, 0.0).sum(dim=-1)
