"""The forward that a rollout and the first optimizer step after it have in common."""

from __future__ import annotations

from torch import Tensor

from lit_rlhf.batches import response_window
from lit_rlhf.models.policy import TokenScores
from lit_rlhf.modules.ppo_update import UpdateTargets
from lit_rlhf.rollout import UpdatePlan


class FirstForward:
    """Saves a forward where the first step takes the whole rollout: no weight moves in between.

    A rollout in one micro-batch keeps the graph of its forward, and the step goes on with it. The
    graphs of several micro-batches would not fit into memory. There the rollout goes without a
    forward if nothing reads it before the step, whose own log-probabilities are then the old ones.

    Args:
        plan: of the update.
        is_read_before: the rewards, the advantages or the loss's weights need the forward.
    """

    def __init__(self, plan: UpdatePlan, *, is_read_before: bool) -> None:
        first_epoch = plan.epochs[0]
        takes_all, num_micro_batches = len(first_epoch) == 1, len(first_epoch[0])
        self.keeps_graph = takes_all and num_micro_batches == 1
        self.is_put_off = takes_all and num_micro_batches > 1 and not is_read_before
        self._num_missing = num_micro_batches if self.is_put_off else 0
        self._kept: TokenScores | None = None

    def keep(self, forward: TokenScores) -> None:
        """Keep the rollout's forward, if the step can use it."""
        self._kept = forward if self.keeps_graph else None

    def take(self) -> TokenScores | None:
        """Return the forward that was kept, once."""
        kept, self._kept = self._kept, None
        return kept

    def fill_in(
        self, targets: UpdateTargets, rows: Tensor, selected: UpdateTargets, forward: TokenScores
    ) -> UpdateTargets:
        """Write missing old log-probabilities, and return the micro-batch's targets with them.

        Args:
            targets: of the whole rollout.
            rows: `[b]` of the micro-batch.
            selected: its targets.
            forward: of the policy, in the first step or later.
        """
        if self._num_missing == 0:
            return selected
        self._num_missing -= 1
        width = targets.response_mask.shape[1]
        old = response_window(forward.logprobs, selected.prompt_lengths, width).detach()
        targets.old_logprobs[rows] = old  # of no rows: nothing
        return selected._replace(old_logprobs=old)
