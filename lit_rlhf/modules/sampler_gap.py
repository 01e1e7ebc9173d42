"""How far the engine that drew the responses is from the policy that trains on them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.batches import RolloutBatch
from lit_rlhf.objectives import kl_k3, truncated_importance_weights


class SamplerGap(NamedTuple):
    """Sums over the response tokens of one process, and the weights that correct the loss.

    Attributes:
        sums: `[5]` float64: tokens, |difference|, k3, weights, truncated tokens.
        largest: largest |difference|, nats.
        weights: `[B, T]` truncated importance weights, or None without a cap.
    """

    sums: Tensor
    largest: float
    weights: Tensor | None

    def means(self, sums: Tensor, largest: float) -> dict[str, float]:
        """Return what is logged, out of sums and the largest difference over all ranks."""
        num_tokens, difference, kl, weight, truncated = sums.tolist()
        count = max(1.0, num_tokens)
        metrics = {
            "sampler_difference": difference / count,
            "sampler_kl": kl / count,
            "sampler_difference_max": largest,
        }
        if self.weights is not None:
            metrics["sampler_weight"] = weight / count
            metrics["sampler_truncated"] = truncated / count
        return metrics


def sampler_gap(rollout: RolloutBatch, cap: float | None) -> SamplerGap:
    """Compare the sampler's log-probabilities with the training forward's.

    Args:
        rollout: samples with old log-probabilities, `[B, T]`.
        cap: of the importance weights, or None for no correction.

    Returns:
        Sums, and the weights where there is a cap.
    """
    mask = rollout.samples.response_mask
    old, sampler = rollout.old_logprobs, rollout.samples.sampler_logprobs
    difference = ((old - sampler) * mask).abs()
    kl = kl_k3(sampler, old) * mask
    nothing = torch.zeros_like(difference)
    weights, is_truncated = None, nothing
    if cap is not None:
        weights, is_truncated = truncated_importance_weights(old, sampler, cap=cap)
    parts = (mask, difference, kl, nothing if weights is None else weights * mask)
    sums = torch.stack([part.double().sum() for part in (*parts, is_truncated * mask)])
    return SamplerGap(sums, float(difference.max()), weights)
