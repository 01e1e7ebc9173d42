"""What PPO logs of a rollout."""

from __future__ import annotations

from torch import Tensor

from lit_rlhf.batches import RolloutBatch
from lit_rlhf.objectives import kl_k1, kl_per_response


def rollout_metrics(rollout: RolloutBatch) -> dict[str, Tensor]:
    """Return `[B]` values, one a response, by the names of their metrics.

    KL and entropy are in nats; the KL is there where the reference has looked at the rollout.
    """
    mask = rollout.samples.response_mask
    metrics = {"reward": rollout.scores}
    if rollout.reference_logprobs is not None:
        token_kl = kl_k1(rollout.old_logprobs, rollout.reference_logprobs)
        metrics["kl"] = kl_per_response(token_kl, mask)
    metrics["length"] = mask.sum(1).float()
    metrics["finished"] = rollout.samples.finished.float()
    metrics["entropy"] = -(rollout.old_logprobs * mask).sum(1)
    return metrics
