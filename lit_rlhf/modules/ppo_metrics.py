"""What PPO logs of a rollout and of held-out samples."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_rlhf.batches import RolloutBatch, SampleBatch
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


def sample_records(
    samples: SampleBatch, columns: dict[str, Tensor], counts: Tensor
) -> list[dict[str, Any]]:
    """Return the samples that count as records: prompt, response and the rounded columns.

    Args:
        samples: `B` samples.
        columns: `[B]` values by name.
        counts: `[B]`, zero for the stand-ins of an uneven last batch.
    """
    return [
        {
            "prompt": samples.prompts[row],
            "response": samples.responses[row],
            **{name: round(float(values[row]), 4) for name, values in columns.items()},
        }
        for row in counts.nonzero().squeeze(-1).tolist()
    ]
