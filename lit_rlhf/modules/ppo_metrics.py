"""What PPO logs of a rollout and of held-out samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.batches import RolloutBatch, SampleBatch, TokenRows
from lit_rlhf.modules.metrics import NamedMeans
from lit_rlhf.modules.ppo_update import UpdateStatistics, UpdateTargets
from lit_rlhf.modules.unscored import scored_columns
from lit_rlhf.objectives import kl_k1, kl_k3, kl_per_response, truncated_importance_weights
from lit_rlhf.prompts import prompt_text
from lit_rlhf.ranks import largest_over_ranks
from lit_rlhf.rewards import RewardSource, ask


def iteration_means(
    rollout: RolloutBatch,
    targets: UpdateTargets,
    statistics: UpdateStatistics,
    counts: Tensor,
    cap: float | None,
) -> dict[str, float]:
    """Return what an iteration logs, as means over all processes; call it on all of them.

    Args:
        rollout: `B` responses.
        targets: of the update.
        statistics: of the update.
        counts: `[B]`, zero at stand-ins.
        cap: of the sampler's correction, see `sampler_gap`.
    """
    means = NamedMeans()
    by_response = rollout_metrics(rollout)
    scored = counts if rollout.is_scored is None else counts & rollout.is_scored
    means.update(by_response, counts, reward=scored)
    details = {f"reward_{name}": values for name, values in rollout.score_details.items()}
    columns, weights = scored_columns(details, () if rollout.is_scored is None else details, counts)
    means.update(columns, counts, **weights)
    by_token, mask = sampler_gap(rollout, cap), rollout.samples.response_mask
    means.update(by_token, mask)
    if targets.returns is not None:
        means.update({"returns": targets.returns}, targets.response_mask)
    report = means.compute() | statistics.report()
    largest = float((by_token["sampler_difference"] * mask).max())
    report["sampler_difference_max"] = largest_over_ranks(largest, mask.device)
    return report


def rollout_metrics(rollout: RolloutBatch) -> dict[str, Tensor]:
    """Return `[B]` values, one a response, by the names of their metrics.

    KL and surprisal are in nats; the KL is there where a reference has scored the rollout.
    """
    mask = rollout.samples.response_mask
    metrics = {"reward": rollout.scores}
    if rollout.reference_logprobs is not None:
        token_kl = kl_k1(rollout.old_logprobs, rollout.reference_logprobs)
        metrics["kl"] = kl_per_response(token_kl, mask)
    if rollout.is_scored is not None:
        metrics["unscored"] = 1.0 - rollout.is_scored.float()
    metrics["length"] = mask.sum(1).float()
    metrics["finished"] = rollout.samples.finished.float()
    metrics["surprisal"] = -(rollout.old_logprobs * mask).sum(1)
    return metrics


def sampler_gap(rollout: RolloutBatch, cap: float | None) -> dict[str, Tensor]:
    """Say how far the engine that drew the responses is from the policy that trains on them.

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


def held_out_columns(
    samples: SampleBatch,
    sources: Mapping[str, RewardSource],
    logprobs: Tensor,
    token_kl: Tensor | None,
) -> dict[str, Tensor]:
    """Return `[B]` values of held-out samples by name: scores, KL, surprisal, length and so on.

    Args:
        samples: `B` samples.
        sources: the reward and the judges by name.
        logprobs: `[B, L]` under the policy, zero where no response token is.
        token_kl: `[B, L]` nats a token, aligned with the rows, or None without a reference.
    """
    columns = score_columns(sources, samples)
    if token_kl is not None:
        columns["kl"] = kl_per_response(token_kl, samples.rows.response_mask)
    columns["surprisal"] = -logprobs.sum(1)
    columns["length"] = samples.response_mask.sum(1).float()
    columns["finished"] = samples.finished.float()
    columns["repetition"] = repetition(samples.rows)
    return columns


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
            "prompt": prompt_text(samples.prompts[row]),
            "response": samples.responses[row],
            **{name: _rounded(values[row]) for name, values in columns.items()},
        }
        for row in counts.nonzero().squeeze(-1).tolist()
    ]


def _rounded(value: Tensor) -> float | None:
    number = float(value)
    return None if math.isnan(number) else round(number, 4)  # JSON has no NaN


def score_columns(sources: Mapping[str, RewardSource], samples: SampleBatch) -> dict[str, Tensor]:
    """Ask every source about the samples: `[B]` float32 by `NAME`, details by `NAME_DETAIL`."""
    columns = {}
    for name, source in sources.items():
        setting = "model.reward" if name == "reward" else f"model.judges.{name}"
        scores, details = ask(setting, source, samples)
        columns[name] = scores
        columns |= {f"{name}_{detail}": values.float() for detail, values in details.items()}
        if name != "reward":
            source.rest()  # so that a GPU holds one judge at a time
    return columns


def repetition(rows: TokenRows) -> Tensor:
    """Return the share of each response's pairs of neighbouring tokens that it had before.

    Args:
        rows: `B` rows.

    Returns:
        `[B]` float32 in [0, 1); 0 for a response of fewer than two tokens.
    """
    shares = []
    for ids, is_response in zip(rows.input_ids.cpu(), rows.response_mask.cpu(), strict=True):
        tokens = ids[is_response].tolist()
        pairs = list(itertools.pairwise(tokens))
        shares.append(1 - len(set(pairs)) / len(pairs) if pairs else 0.0)
    return torch.tensor(shares, dtype=torch.float32, device=rows.input_ids.device)
