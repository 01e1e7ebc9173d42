"""How far the engine that drew the responses is from the policy that trains on them."""

from __future__ import annotations

import torch

from lit_rlhf.batches import RolloutBatch
from lit_rlhf.modules.metrics import Reduction
from lit_rlhf.objectives import kl_k3, truncated_importance_weights


def sampler_gap(rollout: RolloutBatch, cap: float | None, reduction: Reduction) -> dict[str, float]:
    """Compare the sampler's log-probabilities with the training forward's.

    Args:
        rollout: samples with old log-probabilities, `[B, T]`.
        cap: of the importance weights on the loss, or None without a correction.
        reduction: over all ranks; call it on all of them.

    Returns:
        Means over the response tokens of all ranks and the largest difference, nats, as logged.
    """
    mask = rollout.samples.response_mask
    old, sampler = rollout.old_logprobs, rollout.samples.sampler_logprobs
    difference = ((old - sampler) * mask).abs()
    parts = {"sampler_difference": difference, "sampler_kl": kl_k3(sampler, old)}
    if cap is not None:
        weights = truncated_importance_weights(old, sampler, cap=cap)
        parts |= dict(zip(("sampler_weight", "sampler_truncated"), weights, strict=True))
    sums = [(part * mask).double().sum() for part in (torch.ones_like(old), *parts.values())]
    num_tokens, *totals = reduction.sum(torch.stack(sums)).tolist()
    means = {name: total / max(1.0, num_tokens) for name, total in zip(parts, totals, strict=True)}
    return {**means, "sampler_difference_max": reduction.largest(float(difference.max()))}
