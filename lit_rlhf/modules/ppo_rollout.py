"""What every model says of sampled responses, before the update begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.batches import RolloutBatch, SampleBatch, TokenRows, response_window
from lit_rlhf.modules.ppo_update import Forward, select_rows
from lit_rlhf.rewards import RewardSource
from lit_rlhf.rollout import UpdatePlan


class Models(NamedTuple):
    """The models that look at samples, as functions of rows.

    Attributes:
        forward: policy and critic.
        reference_logprobs: `[b, L]` under the reference, or None without a KL penalty.
        reward: scores each response.
        has_values: `forward` gives values.
    """

    forward: Callable[[TokenRows], Forward]
    reference_logprobs: Callable[[TokenRows], Tensor] | None
    reward: RewardSource
    has_values: bool


def evaluate_samples(
    samples: SampleBatch, plan: UpdatePlan | None, models: Models
) -> tuple[RolloutBatch, Forward | None]:
    """Score the samples and look at them once with each model, in the plan's micro-batches.

    No forward is computed twice: where the first step takes all rows in one, that one is kept
    with its graph.

    Args:
        samples: `B` responses.
        plan: of the update; None where its first step's own forwards are the first look, which
            then fills in the old log-probabilities.
        models: those that look.

    Returns:
        The rollout, and the forward that is kept.
    """
    shape, device = samples.response_mask.shape, samples.response_mask.device
    old = torch.zeros(shape, device=device)
    reference = None if models.reference_logprobs is None else torch.zeros(shape, device=device)
    values = torch.zeros(shape, device=device) if models.has_values else None
    keeps_graph = plan is not None and plan.starts_with_all_rows
    first_step = [] if plan is None else plan.epochs[0]
    forward = None
    for micro_batch in (rows for minibatch in first_step for rows in minibatch):
        chosen = micro_batch.to(device)
        rows = select_rows(samples.rows, chosen)
        starts = samples.prompt_lengths[chosen]
        with torch.set_grad_enabled(keeps_graph):
            forward = models.forward(rows)
        with torch.no_grad():
            seen = [(old, forward.logprobs), (values, forward.values)]
            if models.reference_logprobs is not None:
                seen.append((reference, models.reference_logprobs(rows)))
            for kept, tokens in seen if len(chosen) else []:
                if kept is not None and tokens is not None:
                    kept[chosen] = response_window(tokens, starts, shape[1])
    scores = torch.zeros(shape[0], device=device)
    if samples.response_mask.any():  # the reward is not asked about stand-ins
        with torch.no_grad():
            scores = models.reward(samples.prompts, samples.responses, samples).float()
    rollout = RolloutBatch(samples, old, reference, values, scores)
    return rollout, forward if keeps_graph else None
