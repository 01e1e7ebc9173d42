"""How far the engine that drew the responses is from the policy that trains on them."""

from __future__ import annotations

from torch import Tensor

from lit_rlhf.batches import RolloutBatch
from lit_rlhf.objectives import kl_k3, truncated_importance_weights


def sampler_gap(rollout: RolloutBatch, cap: float | None) -> dict[str, Tensor]:
    """Compare the sampler's log-probabilities with the training forward's.

    Args:
        rollout: samples with old log-probabilities, `[B, T]`.
        cap: of the importance weights on the loss, or None without a correction.

    Returns:
        `[B, T]` by the names under which their means over response tokens are logged.
    """
    old, sampler = rollout.old_logprobs, rollout.samples.sampler_logprobs
    gap = {"sampler_difference": (old - sampler).abs(), "sampler_kl": kl_k3(sampler, old)}
    if cap is not None:
        weights = truncated_importance_weights(old, sampler, cap=cap)
        gap["sampler_weight"], gap["sampler_truncated"] = weights
    return gap
