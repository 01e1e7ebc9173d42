"""What PPO watches to stop, or to skip a step, where its numbers have lost their meaning."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_rlhf.batches import RolloutBatch, response_window
from lit_rlhf.errors import TrainingError
from lit_rlhf.models.policy import TokenScores
from lit_rlhf.modules.phase import PhaseModule
from lit_rlhf.modules.ppo_update import UpdateTargets
from lit_rlhf.ranks import sum_over_ranks


def is_sound(module: PhaseModule, rollout: RolloutBatch) -> bool:
    """Skip an iteration, on all processes, whose rollout has a number that is not finite.

    Raises:
        TrainingError: too many steps were skipped.
    """
    module.guard.watch(
        rollout.samples.rows,
        reward=rollout.scores,
        logprobs=rollout.old_logprobs,
        reference_logprobs=rollout.reference_logprobs,
        values=rollout.values,
    )
    if sum_over_ranks(module.guard.is_broken.to(module.device)) > 0:
        module.skip_step()
        return False
    module.guard.forget()
    return True


@torch.no_grad()
def update_numbers(targets: UpdateTargets, forward: TokenScores) -> dict[str, Tensor | None]:
    """Return what a micro-batch computed of each row, by the names that reports give it."""
    width = targets.response_mask.shape[1]
    new = response_window(forward.logprobs, targets.prompt_lengths, width)
    return {
        "logprobs": forward.logprobs,
        "ratio": ((new - targets.old_logprobs) * targets.response_mask).exp(),
        "advantages": targets.advantages,
        "values": forward.values,
        "returns": targets.returns,
    }


def check_first_ratio(largest: float, limit: float) -> None:
    """Stop where the training forward disagrees with itself: the policy has not moved yet.

    Args:
        largest: |log ratio| of the first minibatch, over all ranks.
        limit: it must be below.

    Raises:
        TrainingError: it is not; the message names the likely causes.
    """
    if not largest < limit:
        raise TrainingError(
            f"the first minibatch's largest |log ratio| is {largest:.2e}, not below {limit:.0e}: "
            "the training forward disagrees with itself. Likely causes: dropout, weights changed "
            "between rollout and update, or a kernel that is not deterministic."
        )
