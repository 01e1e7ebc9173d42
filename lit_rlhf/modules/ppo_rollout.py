"""What every model says of sampled responses, before the update begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.batches import RolloutBatch, SampleBatch, TokenRows, response_window
from lit_rlhf.models.policy import TokenScores
from lit_rlhf.modules.first_forward import FirstForward
from lit_rlhf.modules.stand_ins import select_rows
from lit_rlhf.rewards import RewardSource
from lit_rlhf.rollout import UpdatePlan


class Models(NamedTuple):
    """The models that score samples, as functions of rows.

    Attributes:
        forward: policy and critic.
        reference_logprobs: `[b, L]` under the reference, or None without a KL penalty.
        reward: scores each response.
        has_values: `forward` gives values.
    """

    forward: Callable[[TokenRows], TokenScores]
    reference_logprobs: Callable[[TokenRows], Tensor] | None
    reward: RewardSource
    has_values: bool


def evaluate_samples(
    samples: SampleBatch, plan: UpdatePlan, models: Models, first: FirstForward
) -> RolloutBatch:
    """Score the samples with every model, in the micro-batches of the plan's first epoch.

    Args:
        samples: `B` responses.
        plan: of the update.
        models: those that score.
        first: keeps the forward that the first step can use; where it is put off, the old
            log-probabilities are zero until that step fills them in.
    """
    mask, device = samples.response_mask, samples.response_mask.device
    old = torch.zeros(mask.shape, device=device)
    reference = None if models.reference_logprobs is None else torch.zeros_like(old)
    values = torch.zeros_like(old) if models.has_values else None
    first_epoch = [] if first.is_put_off else plan.epochs[0]
    for micro_batch in (rows for minibatch in first_epoch for rows in minibatch):
        rows, starts = select_rows(samples.rows, micro_batch), samples.prompt_lengths[micro_batch]
        with torch.set_grad_enabled(first.keeps_graph):
            forward = models.forward(rows)
        first.keep(forward)
        with torch.no_grad():
            seen = [(old, forward.logprobs), (values, forward.values)]
            if models.reference_logprobs is not None:
                seen.append((reference, models.reference_logprobs(rows)))
            for kept, tokens in seen:
                if kept is not None and tokens is not None:
                    kept[micro_batch] = response_window(tokens, starts, mask.shape[1])
    scores = torch.zeros(len(old), device=device)
    if mask.any():  # the reward is not asked about stand-ins
        with torch.no_grad():
            scores = models.reward(samples.prompts, samples.responses, samples).float()
    return RolloutBatch(samples, old, reference, values, scores)
