"""Labels of single steps: process reward models."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives.bradley_terry import bradley_terry_loss
from lit_rlhf.objectives.reward.scored import RewardLoss, ScoredResponses, WeightedLosses


@dataclass(frozen=True)
class StepLoss(RewardLoss):
    """The score at a step's last token is the log-odds that the step is right; one loss a step.

    With `s` the score at the end of a step, and `probability` its label:

    `loss = -probability * log sigmoid(s) - (1 - probability) * log sigmoid(-s)`

    Source: Lightman et al. 2023; with shares of rollouts as labels Wang et al. 2023
    (Math-Shepherd), eq. 2.

    Peers: TRL's `PRMTrainer` (gone in 1.16) had a softmax over two classes at a separator token.
    """

    reads_steps = True

    def __call__(self, scored: ScoredResponses) -> WeightedLosses:
        """Compute the loss of each step, see the class."""
        if len(scored.scores) != len(scored.probability):
            raise ConfigError(
                f"model.loss StepLoss: a batch has {len(scored.scores)} steps and "
                f"{len(scored.probability)} labels; it needs rows with 'completions' and 'labels'"
            )
        losses = bradley_terry_loss(
            scored.scores, torch.zeros_like(scored.scores), scored.probability.to(scored.scores)
        )
        return WeightedLosses(losses, scored.weight)
